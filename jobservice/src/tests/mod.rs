//! The jobs over a simulated disk and a database file, with a clock that stands still.

mod deletions;
mod interrupted;
mod reconciliation;
mod running;
mod scrubbing;
mod upkeep;
mod world;
