//! The controller's pure parts against an API server in memory and real agents' states.

mod agreement;
mod ahead;
mod interfaces;
mod lock_out;
mod machines;
mod networks;
mod objects;
mod slices;
mod statuses;
mod truth;
mod usage;
mod work;
mod world;
