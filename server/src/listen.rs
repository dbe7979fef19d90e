//! The listener: accepts connections, within bounds, until the process drains.
//!
//! What must stay true: a failing accept never spins (L-19): when there are no files left, we wait for one to be closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::connection::Protocol;
use crate::drain::Drain;
use crate::gate::{Full, Gate};
use crate::metrics::Metrics;

/// How long to wait after an accept that failed for want of files or memory.
const BREATH: Duration = Duration::from_millis(100);
/// What a client over plain HTTP reads when there are too many connections.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n\
    Connection: close\r\n\r\n";

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
    protocol: Arc<Protocol>,
    gate: Arc<Gate>,
    drain: Drain,
    metrics: Arc<Metrics>,
}

impl Listener {
    /// A listener on a bound socket.
    pub(crate) fn new(
        socket: TcpListener,
        protocol: Arc<Protocol>,
        gate: Arc<Gate>,
        drain: Drain,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { socket, protocol, gate, drain, metrics }
    }

    /// Accepts until the process drains. The socket is closed when this returns, so that later clients are refused.
    pub(crate) async fn run(self) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = self.drain.begun() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    self.take(stream, peer);
                }
                // The client went away before we looked.
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    if !failing {
                        tracing::error!(%error, open = self.gate.open(), "cannot accept connections");
                    }
                    failing = true;
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr) {
        match self.gate.admit(peer.ip()) {
            Ok(pass) => {
                self.metrics.connections_accepted.inc();
                let serve = Arc::clone(&self.protocol).serve(stream, peer);
                self.drain.spawn(async move {
                    serve.await;
                    drop(pass);
                });
            }
            Err(full) => {
                self.metrics.connection_refused(full);
                tracing::debug!(%peer, ?full, "a connection was refused");
                if !self.protocol.speaks_tls() {
                    // As much as the socket takes at once; there is no time for more.
                    let _ = stream.try_write(TOO_MANY);
                }
            }
        }
    }
}

/// Errors that `accept` hands on from the connection that it would have returned (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
    )
}

impl Full {
    /// The word for it in metrics.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Address => "address",
        }
    }
}
