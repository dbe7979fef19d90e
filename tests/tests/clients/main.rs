//! Real clients against a real server, over plain HTTP and over TLS, signed in, anonymous, and without rights.
//!
//! Each client's test pushes and pulls images made from nothing, and holds what comes back against what went in.

mod buildah;
mod crane;
mod ctr;
mod docker;
mod helm;
mod nginx;
mod oras;
mod podman;
mod skopeo;
