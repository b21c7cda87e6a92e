//! From the watch of namespaces to what they allow their pods to use beside their own addresses.

use super::Shared;
use crate::api::ALLOWED_EXTRA_ADDRESSES;
use crate::runtime::Coalescer;
use crate::runtime::watch::{Malformed, Sink};
use k8s_openapi::api::core::v1::Namespace;
use std::sync::Arc;

/// See the module.
pub(super) struct AllowanceSink {
    pub state: Shared,
    /// Who acts on news.
    pub told: [Arc<Coalescer>; 2],
}

impl AllowanceSink {
    fn set(&self, namespace: &str, annotation: Option<&str>) {
        let news = self.state.lock().allowances.set(namespace, annotation);
        self.tell(news);
    }

    fn tell(&self, news: bool) {
        if news {
            self.told.iter().for_each(|told| told.notify());
        }
    }
}

fn allowance(namespace: &Namespace) -> (&str, Option<&str>) {
    let annotations = namespace.metadata.annotations.as_ref();
    let annotation = annotations.and_then(|all| all.get(ALLOWED_EXTRA_ADDRESSES)).map(String::as_str);
    (namespace.metadata.name.as_deref().unwrap_or_default(), annotation)
}

impl Sink<Namespace> for AllowanceSink {
    fn reset(&mut self, namespaces: Vec<Namespace>, _: Vec<Malformed>) {
        let news = self.state.lock().allowances.set_all(namespaces.iter().map(allowance));
        self.tell(news);
    }

    fn apply(&mut self, namespace: Namespace) {
        let (name, annotation) = allowance(&namespace);
        self.set(name, annotation);
    }

    fn delete(&mut self, namespace: Namespace) {
        self.set(allowance(&namespace).0, None);
    }

    // The API server itself vouches for namespaces.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}
