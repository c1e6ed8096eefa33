//! (being written)

pub mod inspect;
pub mod nft;
