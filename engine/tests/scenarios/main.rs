//! The rules of the engine, one or more scenarios each; the language is described in `script/mod.rs`.
//! A degree of latitude is 111,195 m: 0.01 is 1,112 m, and the radius of 8,000 m is a little less than 0.072.

mod near;
#[path = "../script/mod.rs"]
mod script;
mod sessions;
mod sharing;
