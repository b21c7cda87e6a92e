//! The CNI plugin `ringfence-cni`, the last in its node's chain: a pod starts when its groups are in the kernel (S7).
//!
//! Owns the protocol on both sides: what the runtime says and wants to hear (CNI 1.1 and before), and what the agent is asked.
//! It must not decide anything about groups, and changes nothing itself: the result of the plugins before it is its own.
//!
//! PURE but for [`client`]; no async runtime, so that the program is small and starts at once.

mod client;
pub mod config;
pub mod message;
pub mod result;
#[cfg(test)]
mod tests;

use crate::agent::attachments::{Attachment, Key};
use crate::policy::NamespacedName;
use client::Unanswered;
use config::{Config, OnTimeout, VERSIONS};
use message::{Answer, Request};
use result::CniResult;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// The name of the plugin: of its program, and its `type` in a network's configuration.
pub const PLUGIN: &str = "ringfence-cni";

/// An error as the runtime is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: u32,
    message: String,
}

/// The codes of the CNI specification.
mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const UNDECODABLE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    pub const NOT_AVAILABLE: u32 = 50;
}

impl Error {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What the program says on standard output, and whether it failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub output: String,
    /// For the exit code.
    pub failed: bool,
}

/// One call by a runtime: its environment, and what it wrote to standard input.
pub fn run(environment: impl Fn(&str) -> Option<String>, input: &str) -> Outcome {
    match serve(&environment, input) {
        Ok(output) => Outcome { output: output.map(|o| o.to_string()).unwrap_or_default(), failed: false },
        Err(Error { code, message }) => {
            let version = config::version(input).unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
            let output = json!({ "cniVersion": version, "code": code, "msg": message }).to_string();
            Outcome { output, failed: true }
        }
    }
}

fn serve(environment: &impl Fn(&str) -> Option<String>, input: &str) -> Result<Option<Value>, Error> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
    let command = variable("CNI_COMMAND")
        .ok_or_else(|| Error::new(code::INVALID_ENVIRONMENT, "CNI_COMMAND is not set: this is a CNI plugin"))?;
    if command == "VERSION" {
        let version = config::version(input).unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    let config = Config::parse(input)?;
    let call = Call { config, variable: &variable };
    match command.as_str() {
        "ADD" => call.add().map(Some),
        "DEL" => call.delete().map(|()| None),
        "CHECK" => call.check().map(|()| None),
        "GC" => call.collect().map(|()| None),
        "STATUS" => call.status().map(|()| None),
        other => Err(Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND {other:?}"))),
    }
}

struct Call<'a> {
    config: Config,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Call<'_> {
    /// The pod may start when its rules are in the kernel.
    fn add(self) -> Result<Value, Error> {
        let mut result = self.config.prev_result.clone().ok_or_else(|| {
            Error::new(code::INVALID_CONFIG, "no prevResult: ringfence-cni comes after other plugins")
        })?;
        self.required("CNI_NETNS")?;
        let attachment = self.attachment(&result)?;
        let (who, deadline) = (attachment.pod.clone(), Instant::now() + self.config.timeout);
        let request = Request::Add { attachment, patience_millis: self.config.patience_millis() };
        match (client::ask(&self.config.socket, request, deadline, true), self.config.on_timeout) {
            (Ok(Answer { problem: None }), _) | (_, OnTimeout::Open) => {
                result["cniVersion"] = json!(self.config.version);
                Ok(result)
            }
            (answer, OnTimeout::Closed) => {
                let why = answer.map_or_else(|why| why.to_string(), |a| a.problem.unwrap_or_default());
                let message = format!("the rules of pod {who} are not known to be in this node's kernel: {why}");
                Err(Error::new(code::TRY_AGAIN_LATER, message))
            }
        }
    }

    /// A pod can always be deleted: whatever the agent says, or if there is none.
    fn delete(self) -> Result<(), Error> {
        let described = self.config.prev_result.as_ref().and_then(|result| self.attachment(result).ok());
        let request = Request::Delete { key: self.key()?, described, patience_millis: self.config.patience_millis() };
        let _ = client::ask(&self.config.socket, request, Instant::now() + self.config.timeout, false);
        Ok(())
    }

    fn check(self) -> Result<(), Error> {
        let result = self.config.prev_result.as_ref();
        let result = result.ok_or_else(|| Error::new(code::INVALID_CONFIG, "no prevResult to check against"))?;
        self.ask(Request::Check { attachment: self.attachment(result)? }, code::TRY_AGAIN_LATER)
    }

    fn collect(self) -> Result<(), Error> {
        // Absent is not "none": that would end every attachment.
        let valid = self.config.valid_attachments.clone().ok_or_else(|| {
            Error::new(code::INVALID_CONFIG, "cni.dev/valid-attachments is missing: nothing is forgotten")
        })?;
        self.ask(Request::Collect { network: self.config.network.clone(), valid }, code::TRY_AGAIN_LATER)
    }

    fn status(self) -> Result<(), Error> {
        self.ask(Request::Status, code::NOT_AVAILABLE)
    }

    /// Asks once, and wants a yes, unless pods are let in without one.
    fn ask(&self, request: Request, code: u32) -> Result<(), Error> {
        let answer = client::ask(&self.config.socket, request, Instant::now() + self.config.timeout, false);
        let problem = match answer {
            Ok(Answer { problem }) => problem,
            Err(Unanswered { .. }) if self.config.on_timeout == OnTimeout::Open => None,
            Err(unanswered) => Some(unanswered.to_string()),
        };
        problem.map_or(Ok(()), |problem| Err(Error::new(code, problem)))
    }

    fn attachment(&self, result: &Value) -> Result<Attachment, Error> {
        let Key { container_id, interface } = self.key()?;
        let arguments = (self.variable)("CNI_ARGS").unwrap_or_default();
        let arguments: BTreeMap<&str, &str> = arguments.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let argument = |name: &str| match arguments.get(name) {
            Some(value) if !value.is_empty() => Ok((*value).to_owned()),
            _ => Err(Error::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS does not say {name}"))),
        };
        let unreadable = |what: String| Error::new(code::INVALID_CONFIG, what);
        let result =
            CniResult::deserialize(result).map_err(|error| unreadable(format!("cannot read prevResult: {error}")))?;
        let no_address = |text| unreadable(format!("prevResult: {text:?} is no address"));
        let addresses = result.addresses().map(|address| address.map_err(no_address)).collect::<Result<_, _>>()?;
        Ok(Attachment {
            pod: NamespacedName::new(argument("K8S_POD_NAMESPACE")?, argument("K8S_POD_NAME")?),
            uid: argument("K8S_POD_UID")?,
            container_id,
            device: result.device(&interface).map(str::to_owned),
            mac: result.mac(&interface).map(str::to_owned),
            interface,
            network: self.config.network.clone(),
            addresses,
        })
    }

    fn key(&self) -> Result<Key, Error> {
        Ok(Key { container_id: self.required("CNI_CONTAINERID")?, interface: self.required("CNI_IFNAME")? })
    }

    fn required(&self, name: &str) -> Result<String, Error> {
        (self.variable)(name).ok_or_else(|| Error::new(code::INVALID_ENVIRONMENT, format!("{name} is not set")))
    }
}
