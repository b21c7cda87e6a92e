//! Errors with their causes.

use std::error::Error;

/// An error's message with those of its causes: kube's own messages stop at "client error".
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut shown = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Many messages repeat their cause already.
        let text = error.to_string();
        if !shown.contains(&text) {
            shown = format!("{shown}: {text}");
        }
        cause = error.source();
    }
    shown
}
