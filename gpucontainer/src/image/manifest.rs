//! Manifests and indexes, of OCI and of Docker's second schema.

use super::platform::Platform;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

/// Largest manifest or index: the limit that registries are asked to accept.
pub(super) const MANIFEST_MAX: u64 = 4 << 20;

/// Largest image configuration. Real ones have some kilobytes; histories of many layers some more.
pub(super) const CONFIG_MAX: u64 = 16 << 20;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Something named by its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Blob {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Blob {
    /// The same layer in OCI's words: a manifest of ours has no others.
    pub(super) fn into_oci(mut self) -> Self {
        match self.media_type.as_str() {
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                self.media_type = format!("{OCI_LAYER}+gzip");
            }
            "application/vnd.docker.image.rootfs.diff.tar" => self.media_type = OCI_LAYER.to_owned(),
            _ => {}
        }
        self
    }
}

/// The image of one platform.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Blob,
    /// Bottom first.
    pub(super) layers: Vec<Blob>,
}

impl Manifest {
    /// The manifest as OCI's JSON; the same for the same content.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let json = |blob: &Blob| {
            serde_json::json!({
                "mediaType": blob.media_type, "digest": blob.digest.to_string(), "size": blob.size
            })
        };
        let layers: Vec<_> = self.layers.iter().map(json).collect();
        serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": json(&self.config), "layers": layers
        })
        .to_string()
        .into_bytes()
    }
}

/// One entry of an index.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) blob: Blob,
    pub(super) platform: Option<Platform>,
    /// What the archive calls it.
    pub(super) names: Vec<String>,
}

/// What a registry or an archive keeps under the name of an image.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Vec<Entry>),
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidImage, format!("manifest: {why}"))
}

/// Reads either kind.
pub(super) fn parse(bytes: &[u8]) -> Result<Document> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(invalid)?;
    let is_index = value.get("manifests").is_some();
    // The kind decides what the digest stands for, so it must not depend on the reader.
    if is_index && (value.get("layers").is_some() || value.get("config").is_some()) {
        return Err(invalid("it claims to be both an index and a manifest"));
    }
    let version = value.get("schemaVersion").and_then(serde_json::Value::as_u64);
    if version != Some(2) {
        return Err(invalid(match version {
            Some(1) => "Docker's schema 1 is obsolete; ask for the image to be pushed again",
            _ => "it has no schemaVersion 2",
        }));
    }
    match value.get("mediaType").and_then(serde_json::Value::as_str) {
        Some(OCI_INDEX | DOCKER_LIST) if !is_index => return Err(invalid("an index without `manifests`")),
        Some(OCI_MANIFEST | DOCKER_MANIFEST) if is_index => return Err(invalid("a manifest with `manifests`")),
        _ => {}
    }
    if is_index {
        let index: ImageIndex = serde_json::from_value(value).map_err(invalid)?;
        index.manifests().iter().map(entry).collect::<Result<_>>().map(Document::Index)
    } else {
        let manifest: ImageManifest = serde_json::from_value(value).map_err(invalid)?;
        Ok(Document::Manifest(Manifest {
            config: blob(manifest.config())?,
            layers: manifest.layers().iter().map(blob).collect::<Result<_>>()?,
        }))
    }
}

fn blob(descriptor: &Descriptor) -> Result<Blob> {
    Ok(Blob {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().as_ref().parse().map_err(|e: Error| e.with_kind(ErrorKind::InvalidImage))?,
        size: descriptor.size(),
    })
}

fn entry(descriptor: &Descriptor) -> Result<Entry> {
    let platform = descriptor.platform().as_ref().map(|platform| {
        Platform::new(
            platform.os().to_string(),
            platform.architecture().to_string(),
            platform.variant().as_deref().filter(|variant| !variant.is_empty()),
        )
    });
    let annotations = descriptor.annotations().as_ref();
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .filter_map(|key| annotations?.get(*key).cloned())
        .collect();
    Ok(Entry { blob: blob(descriptor)?, platform, names })
}

/// The entry that serves `wanted` best; the first of equals.
pub(super) fn choose<'a>(entries: impl IntoIterator<Item = &'a Entry>, wanted: &Platform) -> Result<&'a Entry> {
    let mut offered = Vec::new();
    let mut best: Option<(u32, &Entry)> = None;
    for entry in entries {
        // An entry without a platform says nothing against it; its configuration is checked later.
        let distance = match &entry.platform {
            Some(platform) => {
                offered.push(platform.to_string());
                wanted.distance(platform)
            }
            None => Some(1000),
        };
        if let Some(distance) = distance.filter(|distance| best.is_none_or(|(least, _)| *distance < least)) {
            best = Some((distance, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        Error::new(ErrorKind::InvalidImage, format!("index: no image for {wanted}, only for {}", offered.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> serde_json::Value {
        serde_json::json!({"mediaType": media_type, "digest": D, "size": 0})
    }

    #[test]
    fn both_families_are_read() {
        for media_type in [Some(OCI_MANIFEST), Some(DOCKER_MANIFEST), None] {
            let mut value = serde_json::json!({
                "schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [descriptor(OCI_LAYER)]
            });
            if let Some(media_type) = media_type {
                value["mediaType"] = media_type.into();
            }
            let Document::Manifest(manifest) = parse(value.to_string().as_bytes()).unwrap() else { panic!() };
            assert_eq!(manifest.layers[0].media_type, OCI_LAYER);
        }
    }

    #[test]
    fn an_index_gives_the_platform_asked_for() {
        let mut entries = Vec::new();
        for (os, architecture) in [("unknown", "unknown"), ("linux", "arm64"), ("linux", "amd64")] {
            let mut entry = descriptor(OCI_MANIFEST);
            entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
            entries.push(entry);
        }
        let text = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let Document::Index(entries) = parse(text.as_bytes()).unwrap() else { panic!() };
        let chosen = choose(&entries, &"linux/amd64".parse().unwrap()).unwrap();
        assert_eq!(chosen.platform.as_ref().unwrap().to_string(), "linux/amd64");
        let error = choose(&entries, &"linux/s390x".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("linux/s390x") && error.to_string().contains("linux/arm64"), "{error}");
    }

    #[test]
    fn malformed_documents_are_refused() {
        let config = descriptor(OCI_CONFIG);
        let table = [
            serde_json::json!(null),
            serde_json::json!({}),
            serde_json::json!({"schemaVersion": 1, "fsLayers": []}),
            serde_json::json!({"schemaVersion": 2}),
            serde_json::json!({"schemaVersion": 2, "config": config}),
            serde_json::json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []}),
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": config, "layers": []}),
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}),
            serde_json::json!({"schemaVersion": 2, "config": {"mediaType": "x", "digest": "sha256:1", "size": 1}, "layers": []}),
            serde_json::json!({"schemaVersion": 2, "config": {"mediaType": "x", "digest": D, "size": -1}, "layers": []}),
        ];
        for value in table {
            assert_eq!(parse(value.to_string().as_bytes()).unwrap_err().kind(), ErrorKind::InvalidImage, "{value}");
        }
    }
}
