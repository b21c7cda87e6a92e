//! The controller's decisions, from objects in to conditions and writes out.
