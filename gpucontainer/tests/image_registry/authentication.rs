//! Pulling from registries that want to know who asks, or that the host does not trust.

use crate::image_support::front::{Front, answer};
use crate::image_support::{Place, Registry, base64, read, run, umoci_layout};
use crate::{puller, ready};
use gpucontainer::ErrorKind;
use gpucontainer::image::{Credentials, ImageStore, PullOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A certificate authority and a certificate for 127.0.0.1; paths of authority, certificate, key.
fn certificates(directory: &Path) -> (String, String, String) {
    std::fs::create_dir_all(directory).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    let (ca, ca_key, certificate, key) = (path("ca.pem"), path("ca.key"), path("cert.pem"), path("cert.key"));
    let new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    run(Command::new("openssl").args(new_key).args([
        "-x509",
        "-subj",
        "/CN=test authority",
        "-out",
        &ca,
        "-keyout",
        &ca_key,
    ]));
    let names =
        ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"];
    run(Command::new("openssl").args(new_key).args(names).args([
        "-x509",
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-out",
        &certificate,
        "-keyout",
        &key,
    ]));
    (ca, certificate, key)
}

/// `user` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

#[test]
fn https_with_its_own_authority_and_basic_authentication() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let directory = place.path("registry");
    let open = Registry::start(&directory, "", "");
    let layout = umoci_layout(&place.path(""), 1, 0);
    open.push(&format!("oci:{}:v1", layout.display()), "x:1", &[]);
    drop(open);
    let (ca, certificate, key) = certificates(&place.path("certificates"));
    std::fs::write(place.path("htpasswd"), HTPASSWD).unwrap();
    let tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", place.path("htpasswd").display());
    let registry = Registry::start(&directory, &tls, &auth);
    let name = registry.name("x:1");
    let pem = std::fs::read(ca).unwrap();
    let secure = || PullOptions::new().plain_http(false).timeout(Duration::from_secs(20));
    let trusting = || secure().certificate_authority(pem.clone());

    let table = [
        ("nobody vouches", secure().credentials(Credentials::anonymous()), ErrorKind::Network),
        ("plain", trusting().plain_http(true).credentials(Credentials::anonymous()), ErrorKind::Registry),
        ("anonymous", trusting().credentials(Credentials::anonymous()), ErrorKind::Authentication),
        ("wrong", trusting().credentials(Credentials::password("user", "wrong")), ErrorKind::Authentication),
        ("no pem", secure().certificate_authority("nothing"), ErrorKind::InvalidArgument),
    ];
    for (case, options, kind) in table {
        let error = place.store.pull(&name, options).unwrap_err();
        assert_eq!(error.kind(), kind, "{case}: {error}");
        assert!(!error.to_string().contains("wrong"), "the password is not shown: {error}");
        place.assert_good();
    }
    let image = place.store.pull(&name, trusting().credentials(Credentials::password("user", "secret"))).unwrap();
    assert_eq!(read(&image, "etc/layer-0").unwrap(), "layer 0");

    // The same from the files that logging in leaves, in a process of its own since they are found by its environment.
    for (file, text) in [
        (
            "docker",
            format!(
                r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#,
                registry.name("").trim_end_matches('/'),
                base64(b"user:secret")
            ),
        ),
        ("helper", r#"{"credsStore":"none"}"#.to_owned()),
    ] {
        let config = place.path(file);
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("config.json"), text).unwrap();
        let mut child = puller(&place.path(&format!("store-{file}")), &name);
        child.env("DOCKER_CONFIG", &config).env("GPUC_TEST_CA", place.path("certificates/ca.pem"));
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match file {
            "docker" => assert!(output.status.success(), "{said}"),
            _ => assert!(
                !output.status.success() && said.contains("Authentication") && said.contains("helper"),
                "{said}"
            ),
        }
    }
}

/// Signs tokens as the registry's `auth: token` wants them.
struct TokenServer {
    front: Front,
    certificate: String,
}

impl TokenServer {
    fn start(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let path = |name: &str| directory.join(name).display().to_string();
        let (certificate, key) = (path("token.pem"), path("token.key"));
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"])
            .args(["-out", &certificate, "-keyout", &key]));
        let pem = std::fs::read_to_string(&certificate).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let front = Front::start(move |request, stream| {
            let basic = format!("Basic {}", base64(b"user:secret"));
            let (subject, allowed) = match (request.method.as_str(), request.header("authorization")) {
                ("GET", None) => ("", request.path.contains("repository%3Apublic")),
                ("GET", Some(header)) => ("user", header == basic),
                ("POST", _) => (
                    "user",
                    request.text().contains("refresh_token=identity")
                        && request.text().contains("grant_type=refresh_token"),
                ),
                _ => ("", false),
            };
            if !allowed && !subject.is_empty() {
                return answer(stream, "401 Unauthorized", &[], b"{}");
            }
            let repository = if request.path.contains("public") || request.text().contains("public") {
                "public/x"
            } else {
                "private/x"
            };
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let access = if allowed {
                serde_json::json!([{"type": "repository", "name": repository, "actions": ["pull"]}])
            } else {
                serde_json::json!([])
            };
            let claims = serde_json::json!({
                "iss": "tokens", "sub": subject, "aud": "test registry", "exp": now + 300, "nbf": now - 10, "iat": now,
                "jti": "1", "access": access
            });
            let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
            let url = |bytes: &[u8]| base64(bytes).replace('+', "-").replace('/', "_").replace('=', "");
            let signed = format!("{}.{}", url(header.to_string().as_bytes()), url(claims.to_string().as_bytes()));
            let mut openssl = Command::new("openssl")
                .args(["dgst", "-sha256", "-sign", &key])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut openssl.stdin.take().unwrap(), signed.as_bytes()).unwrap();
            let signature = openssl.wait_with_output().unwrap().stdout;
            let body = serde_json::json!({"token": format!("{signed}.{}", url(&signature))}).to_string();
            answer(stream, "200 OK", &[("Content-Type", "application/json")], body.as_bytes());
        });
        Self { front, certificate }
    }
}

#[test]
fn tokens_are_got_anonymously_with_a_password_and_with_an_identity_token() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let directory = place.path("registry");
    let open = Registry::start(&directory, "", "");
    let layout = umoci_layout(&place.path(""), 3, 0);
    let source = format!("oci:{}:v1", layout.display());
    open.push(&source, "public/x:1", &[]);
    open.push(&source, "private/x:1", &[]);
    drop(open);
    let tokens = TokenServer::start(&place.path("tokens"));
    let auth = format!(
        "auth:\n  token:\n    realm: http://127.0.0.1:{}/token\n    service: test registry\n    issuer: tokens\n    rootcertbundle: {}\n",
        tokens.front.port, tokens.certificate
    );
    let registry = Registry::start(&directory, "", &auth);
    let pull = |name: &str, credentials| {
        let fresh = tempfile::tempdir_in(place.path("")).unwrap();
        let store = ImageStore::open(fresh.path()).unwrap();
        store
            .pull(&registry.name(name), PullOptions::new().credentials(credentials))
            .map(|image| image.layers().unwrap().len())
    };
    assert_eq!(pull("public/x:1", Credentials::anonymous()).unwrap(), 3);
    assert_eq!(tokens.front.seen().len(), 1, "one token serves the manifest and all layers");
    assert_eq!(pull("private/x:1", Credentials::password("user", "secret")).unwrap(), 3);
    assert_eq!(pull("private/x:1", Credentials::identity_token("identity")).unwrap(), 3);
    for (case, credentials) in [
        ("anonymous", Credentials::anonymous()),
        ("wrong password", Credentials::password("user", "wrong")),
        ("wrong token", Credentials::identity_token("other")),
    ] {
        let error = pull("private/x:1", credentials).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{case}: {error}");
    }
}
