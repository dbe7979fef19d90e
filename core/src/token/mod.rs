//! Bearer tokens for `/v2`: ES256, 300 seconds, made by `/service/token`.

pub mod claims;
pub mod keys;
pub mod scope;
pub mod service;
