//! Images made by hand: what no honest tool would make.

use gpucontainer::Digest;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// A layer's archive with one file.
pub(crate) fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image as blobs, changed at will before it is written or served.
#[derive(Clone)]
pub(crate) struct Handmade {
    pub(crate) config: serde_json::Value,
    pub(crate) manifest: serde_json::Value,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
}

impl Handmade {
    /// Of compressed layers and their diff ids.
    pub(crate) fn new(layers: &[(Vec<u8>, String)]) -> Self {
        let diff_ids: Vec<&String> = layers.iter().map(|(_, diff_id)| diff_id).collect();
        let config = serde_json::json!({
            "architecture": super::architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}
        });
        let mut blobs = HashMap::new();
        let mut descriptors = Vec::new();
        for (bytes, _) in layers {
            let digest = Digest::of(bytes).to_string();
            descriptors.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": bytes.len()
            }));
            blobs.insert(digest, bytes.clone());
        }
        let manifest = serde_json::json!({"schemaVersion": 2, "config": null, "layers": descriptors});
        Self { config, manifest, blobs }
    }

    /// An honest one with one layer.
    pub(crate) fn good() -> Self {
        let tar = tar_of("file", b"content");
        Self::new(&[(gzip(&tar), Digest::of(&tar).to_string())])
    }

    /// The manifest's bytes; the configuration joins the blobs.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let config = self.config.to_string().into_bytes();
        let digest = Digest::of(&config).to_string();
        if self.manifest["config"].is_null() {
            self.manifest["config"] = serde_json::json!({
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()
            });
        }
        self.blobs.entry(digest).or_insert(config);
        self.manifest.to_string().into_bytes()
    }

    /// What a registry would serve for `name:tag`.
    pub(crate) fn served(mut self, name: &str, tag: &str) -> HashMap<String, Vec<u8>> {
        let manifest = self.finish();
        let mut files: HashMap<String, Vec<u8>> =
            self.blobs.into_iter().map(|(digest, bytes)| (format!("/v2/{name}/blobs/{digest}"), bytes)).collect();
        files.insert(format!("/v2/{name}/manifests/{}", Digest::of(&manifest)), manifest.clone());
        files.insert(format!("/v2/{name}/manifests/{tag}"), manifest);
        files
    }

    /// Writes an OCI layout.
    pub(crate) fn write(mut self, directory: &Path, name: &str) {
        let manifest = self.finish();
        let digest = Digest::of(&manifest).to_string();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name}
        }]});
        self.blobs.insert(digest, manifest);
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(directory.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        }
    }
}
