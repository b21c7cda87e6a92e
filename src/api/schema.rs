//! Schema fragments that the derive cannot express: int-or-string ports, strict label selectors, the default egress rule.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Ports: numbers, or ranges as text. The cost of CEL over text of an int-or-string is estimated without regard to its length
/// and so exceeds every budget; the chart's admission policy judges the text.
pub fn ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 64,
        "items": { "x-kubernetes-int-or-string": true },
        "x-kubernetes-list-type": "atomic",
    })
}

/// A list of CIDRs; each one is judged by CEL where the API server's own address library is at hand.
pub fn cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 64,
        "items": {
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [
                {
                    "rule": "isCIDR(self)",
                    "message": "must be an address with a prefix length, like 203.0.113.10/32 or 2001:db8::/64; no leading zeros, no IPv4-mapped IPv6",
                },
                {
                    "rule": "!isCIDR(self) || cidr(self).masked() == cidr(self)",
                    "message": "host bits are set: clear them, or lengthen the prefix to mean fewer addresses",
                },
            ],
        },
        "x-kubernetes-list-type": "set",
    })
}

/// Addresses of one interface.
pub fn addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "items": {
            "type": "string",
            "maxLength": 39,
            "x-kubernetes-validations": [
                {
                    "rule": "isIP(self)",
                    "message": "must be an address, like 10.20.0.5 or fd00::5, without a prefix length",
                },
                {
                    "rule": "!isIP(self) || ip(self).isGlobalUnicast() || (ip(self).family() == 6 && ip(self).isLinkLocalUnicast())",
                    "message": "is no address that one interface can have for its own",
                },
            ],
        },
        "x-kubernetes-list-type": "set",
    })
}

/// The rule that opens the egress of a new group. The API server writes it, so that everyone can see it.
pub fn default_egress() -> Value {
    json!([{
        "protocol": "Any",
        "remote": { "cidrs": ["0.0.0.0/0", "::/0"] },
        "description": "default, allow everything outbound",
    }])
}

/// `metav1.LabelSelector`, strict enough that what is admitted can be evaluated.
pub fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "description": "Label selector over objects of this namespace. {} selects every one. matchLabels and matchExpressions are ANDed.",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels that must be present with exactly these values.",
                "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "type": "array",
                "description": "Requirements on labels; all must hold.",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "maxLength": 317, "description": "The label key." },
                        "operator": {
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "How the label relates to the values: In, NotIn, Exists or DoesNotExist.",
                        },
                        "values": {
                            "type": "array",
                            "maxItems": 64,
                            "items": { "type": "string", "maxLength": 63 },
                            "x-kubernetes-list-type": "atomic",
                            "description": "Values for In and NotIn; must be absent for Exists and DoesNotExist.",
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] == (has(self.values) && size(self.values) > 0)",
                        "message": "In and NotIn need at least one value; Exists and DoesNotExist take none",
                    }],
                },
            },
        },
        "x-kubernetes-map-type": "atomic",
    })
}

/// Takes `nullable` off every field: the API server then drops nulls, and null cannot come to mean something else than absent.
pub fn without_nullable(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    fn strip(schema: &mut JSONSchemaProps) {
        schema.nullable = None;
        schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(strip);
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
            strip(items);
        }
    }
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            strip(schema);
        }
    }
    crd
}
