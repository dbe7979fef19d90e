//! The frames that a client sends, and how many of them may carry nothing.
//!
//! The library answers pings and settings for as long as they come, and looks at every priority, window update and reset:
//! work for us that costs the client nine bytes. A connection therefore has an allowance of frames that carry no data. It
//! earns more with the data that it brings and takes, and a little with time, so that pings, windows and cancelled requests
//! of an honest client never reach its end.
//!
//! What must stay true: the guard finds the ends of frames as the library does, and refuses only between two frames.

use std::time::Duration;

use tokio::time::Instant;

use crate::framing::Verdict;

/// Bytes of the text that begins a connection (RFC 9113 section 3.4). The library holds it against what it should be.
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's head (RFC 9113 section 4.1).
const HEAD_BYTES: usize = 9;
/// Frames without data that a connection may send at once. Clients open with a handful; one that gives up a few hundred
/// requests at the same moment resets as many streams.
const FRAMES_AT_ONCE_MAX: u64 = 1000;
/// … and for each second. Keep-alive pings come once in seconds.
const FRAMES_PER_SEC: u64 = 50;
/// … and for so many bytes sent or received. The smallest useful window update is for a frame of 16 KiB, and there are two.
const BYTES_PER_FRAME: u64 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Frames that the library answers with GOAWAY, `ENHANCE_YOUR_CALM`: a head that never ends. It has no other way to be told;
/// the frames end up in place of the client's next one.
pub(crate) const CALM: &[u8] = &calm();

/// How many pieces a head may come in grows with its size. This is more than the largest head of the configuration gives.
const CALM_FRAMES: usize = 256;
const _: () = assert!(CALM_FRAMES > 2 * (1024 + 60) / (super::FRAME_BYTES_MAX as usize / 1024) * 5 / 4);

const fn calm() -> [u8; HEAD_BYTES * CALM_FRAMES] {
    let mut frames = [0; HEAD_BYTES * CALM_FRAMES];
    let mut frame = 0;
    while frame < CALM_FRAMES {
        frames[frame * HEAD_BYTES + 3] = if frame == 0 { HEADERS } else { CONTINUATION };
        // Any stream of the client's will do.
        frames[frame * HEAD_BYTES + 8] = 1;
        frame += 1;
    }
    frames
}

/// Where in the byte stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the preface, so many bytes before its end.
    Preface(usize),
    /// In a frame's head, of which so many bytes have come.
    Head(usize),
    /// In a payload, so many bytes before its end.
    Payload(usize),
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Frames {
    place: Place,
    head: [u8; HEAD_BYTES],
    frames_left: u64,
    // Bytes that have not earned a frame yet.
    bytes: u64,
    refilled: Instant,
    exhausted: bool,
}

impl Frames {
    /// A connection that begins.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            place: Place::Preface(PREFACE_BYTES),
            head: [0; HEAD_BYTES],
            frames_left: FRAMES_AT_ONCE_MAX,
            bytes: 0,
            refilled: now,
            exhausted: false,
        }
    }

    /// Follows bytes that came. Refused is the place right behind the frame that was one too many.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match self.place {
                Place::Preface(left) => {
                    let count = left.min(rest.len());
                    self.place = if count == left { Place::Head(0) } else { Place::Preface(left - count) };
                    count
                }
                Place::Head(have) => {
                    let count = (HEAD_BYTES - have).min(rest.len());
                    for (to, from) in self.head.iter_mut().skip(have).zip(rest) {
                        *to = *from;
                    }
                    self.place = Place::Head(have + count);
                    if have + count == HEAD_BYTES {
                        self.place = Place::Payload(self.account());
                    }
                    count
                }
                Place::Payload(left) => {
                    let count = left.min(rest.len());
                    self.place = Place::Payload(left - count);
                    count
                }
            };
            if self.place == Place::Payload(0) {
                self.place = Place::Head(0);
                if self.exhausted {
                    return Verdict::Refused(at);
                }
            }
        }
        Verdict::Fine
    }

    /// Notes bytes that went out, or came as data.
    pub(crate) fn earn(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.allow(self.bytes / BYTES_PER_FRAME);
        self.bytes %= BYTES_PER_FRAME;
    }

    fn allow(&mut self, frames: u64) {
        self.frames_left = self.frames_left.saturating_add(frames).min(FRAMES_AT_ONCE_MAX);
    }

    /// Accounts for the frame whose head has come, and tells the length of its payload.
    fn account(&mut self) -> usize {
        let [high, middle, low, kind, ..] = self.head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match kind {
            DATA => self.earn(length),
            // Requests are bounded as such, the pieces of a head by the library.
            HEADERS | CONTINUATION => {}
            _ => self.spend(),
        }
        length
    }

    fn spend(&mut self) {
        if self.frames_left == 0 {
            // The clock is asked only here, not for every frame.
            let ticks = self.refilled.elapsed().as_millis() / u128::from(1000 / FRAMES_PER_SEC);
            let frames = u64::try_from(ticks).unwrap_or(u64::MAX).min(FRAMES_AT_ONCE_MAX);
            if frames > 0 {
                self.refilled += Duration::from_millis(frames * (1000 / FRAMES_PER_SEC));
            }
            self.allow(frames);
        }
        match self.frames_left.checked_sub(1) {
            Some(left) => self.frames_left = left,
            None => self.exhausted = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0; HEAD_BYTES + length];
        frame[..3].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes()[1..]);
        frame[3] = kind;
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert_eq!(
            frames.follow(&[0xff; PREFACE_BYTES]),
            Verdict::Fine,
            "the preface is the library's to judge"
        );
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn one_ping_more_than_the_allowance_is_refused_behind_itself_however_it_is_cut_up() {
        let pings = frame(PING, 8).repeat(1005);
        for step in [1, 2, 7, 9, 17, 100, 17_085] {
            let mut frames = begun();
            let mut followed = 0;
            let refused = pings.chunks(step).find_map(|piece| match frames.follow(piece) {
                Verdict::Fine => {
                    followed += piece.len();
                    None
                }
                Verdict::Refused(at) => Some(followed + at),
            });
            assert_eq!(refused, Some(1001 * 17), "in steps of {step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_both_ways_pays_for_window_updates() {
        let mut frames = begun();
        for _ in 0..10_000 {
            frames.earn(1024);
            assert_eq!(frames.follow(&frame(WINDOW_UPDATE, 4)), Verdict::Fine);
        }
        for _ in 0..10_000 {
            assert_eq!(frames.follow(&frame(DATA, 1024)), Verdict::Fine);
            assert_eq!(frames.follow(&frame(WINDOW_UPDATE, 4)), Verdict::Fine);
        }
        // What is earned does not pile up for a flood.
        frames.earn(1 << 30);
        let flood = frame(WINDOW_UPDATE, 4).repeat(1001);
        assert_eq!(frames.follow(&flood), Verdict::Refused(flood.len()));
    }

    #[tokio::test(start_paused = true)]
    async fn time_pays_for_pings() {
        let mut frames = begun();
        for _ in 0..5000 {
            tokio::time::advance(Duration::from_millis(20)).await;
            assert_eq!(frames.follow(&frame(PING, 8)), Verdict::Fine);
        }
        let twice = frame(PING, 8).repeat(2);
        let mut refused = false;
        for _ in 0..5000 {
            tokio::time::advance(Duration::from_millis(20)).await;
            refused |= matches!(frames.follow(&twice), Verdict::Refused(_));
        }
        assert!(refused, "twice as many were let pass for 100 s");
    }

    #[test]
    fn the_frames_that_end_a_connection_are_frames() {
        assert_eq!(CALM.len(), HEAD_BYTES * CALM_FRAMES);
        assert_eq!(CALM[..18], [0, 0, 0, HEADERS, 0, 0, 0, 0, 1, 0, 0, 0, CONTINUATION, 0, 0, 0, 0, 1]);
    }
}
