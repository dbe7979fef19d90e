//! Events as text: `TIME LEVEL SPAN{FIELDS}: TARGET: MESSAGE NAME=VALUE ...`.
//!
//! The form of `tracing_subscriber`, made without its colours: a line for each request is a good part of what a small request costs.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether there is nothing but printable ASCII. Looks at every byte, which takes several at a time where stopping early takes one.
pub(super) fn is_plain(text: &[u8]) -> bool {
    text.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

/// The form of an event.
pub(super) struct Text;

/// The form of its fields: strings in quotes, with what could be mistaken in them escaped.
pub(super) struct Fields;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut out)?;
        out.write_str(match *event.metadata().level() {
            Level::ERROR => " ERROR ",
            Level::WARN => "  WARN ",
            Level::INFO => "  INFO ",
            Level::DEBUG => " DEBUG ",
            Level::TRACE => " TRACE ",
        })?;
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                out.write_str(span.name())?;
                if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                    && !fields.is_empty()
                {
                    write!(out, "{{{fields}}}")?;
                }
                out.write_char(':')?;
            }
            out.write_char(' ')?;
        }
        out.write_str(event.metadata().target())?;
        out.write_str(": ")?;
        context.format_fields(out.by_ref(), event)?;
        out.write_char('\n')
    }
}

impl<'a> FormatFields<'a> for Fields {
    fn format_fields<R: RecordFields>(&self, out: Writer<'a>, fields: R) -> fmt::Result {
        let mut writing = Writing { out, is_first: true, result: Ok(()) };
        fields.record(&mut writing);
        writing.result
    }
}

/// Fields while they are written.
struct Writing<'a> {
    out: Writer<'a>,
    is_first: bool,
    result: fmt::Result,
}

impl Writing<'_> {
    fn name(&mut self, field: &Field) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.out.write_str(" ")?;
        }
        if field.name() != "message" {
            self.out.write_str(field.name())?;
            self.out.write_str("=")?;
        }
        Ok(())
    }

    fn text(&mut self, field: &Field, text: &str) -> fmt::Result {
        self.name(field)?;
        if field.name() == "message" {
            self.out.write_str(text)
        } else if is_plain(text.as_bytes()) && !text.contains(['"', '\\']) {
            self.out.write_str("\"")?;
            self.out.write_str(text)?;
            self.out.write_str("\"")
        } else {
            write!(self.out, "{text:?}")
        }
    }

    fn value(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        self.name(field)?;
        write!(self.out, "{value:?}")
    }
}

impl Visit for Writing<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.text(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.value(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn events() {
        tracing::info!(target: "taffrail::request", id = "a-1", path = "/v2/\"\\é\n", status = 200_u16, "request");
        tracing::warn!(error = %"it broke", flag = true, "watch out {}", 5);
        let span = tracing::info_span!("request", id = "b", late = tracing::field::Empty);
        let _inside = span.enter();
        span.record("late", 7);
        tracing::error!(some = ?Some("x"));
        let inner = tracing::info_span!("inner");
        let _inside = inner.enter();
        tracing::info!("plain");
    }

    /// What `events` give, each line without its time.
    fn lines(subscribe: impl FnOnce(Out) -> tracing::Dispatch) -> Vec<String> {
        let out = Out::default();
        tracing::dispatcher::with_default(&subscribe(out.clone()), events);
        let bytes = out.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| line.split_once('Z').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn an_event_reads_as_it_does_from_the_library() {
        let ours = lines(|out| {
            let builder = tracing_subscriber::fmt().with_ansi(false);
            let builder = builder.with_writer(move || out.clone());
            builder.fmt_fields(Fields).event_format(Text).finish().into()
        });
        let theirs = lines(|out| {
            let builder = tracing_subscriber::fmt().with_ansi(false);
            builder.with_writer(move || out.clone()).finish().into()
        });
        assert_eq!(ours.len(), 4);
        assert_eq!(ours, theirs);
    }
}
