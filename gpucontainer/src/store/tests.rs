use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

fn record(store: &Store, work: &Work, name: &str, diff_ids: &[Digest]) -> Record {
    let ids: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string();
    let config = store.add_blob(work, config.as_bytes()).unwrap();
    let manifest = store
        .add_blob(
            work,
            serde_json::json!({"config": {"digest": config.to_string()}, "name": name}).to_string().as_bytes(),
        )
        .unwrap();
    let record = Record {
        reference: name.to_owned(),
        manifest: manifest.to_string(),
        config: config.to_string(),
        platform: "linux/amd64".to_owned(),
    };
    store.set_reference(work, &record).unwrap();
    record
}

fn layer(store: &Store, work: &Work, name: &str) -> Digest {
    let digest = Digest::of(name.as_bytes());
    let staged = work.fresh_directory().unwrap();
    std::fs::create_dir(staged.join("tree")).unwrap();
    std::fs::write(staged.join("tree/file"), name).unwrap();
    store.add_layer(work, &digest, &staged).unwrap();
    digest
}

#[test]
fn a_store_opens_again_and_another_version_is_refused() {
    let (_directory, store) = store();
    Store::open(store.root()).unwrap();
    assert!(store.staged().unwrap().is_empty());
    let other = if own_owners() == "real" { "1 mapped\n" } else { "1 real\n" };
    for version in ["2 real\n", "1\n", "", other] {
        std::fs::write(store.root().join("version"), version).unwrap();
        assert_eq!(Store::open(store.root()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn blobs_are_checked_when_they_are_read_and_mended_when_added() {
    let (_directory, store) = store();
    let work = Work::begin(&store).unwrap();
    let digest = store.add_blob(&work, b"good").unwrap();
    assert_eq!(store.blob(&digest).unwrap().unwrap(), b"good");
    assert_eq!(store.blob(&Digest::of(b"other")).unwrap(), None);
    std::fs::write(store.blob_path(&digest), "evil").unwrap();
    assert_eq!(store.blob(&digest).unwrap_err().kind(), ErrorKind::Corrupt);
    store.add_blob(&work, b"good").unwrap();
    assert_eq!(store.blob(&digest).unwrap().unwrap(), b"good");
}

#[test]
fn collection_keeps_what_is_referred_to_or_used() {
    let (_directory, store) = store();
    let cancel = Cancel::new();
    let adding = store.adding(&cancel).unwrap();
    let work = Work::begin(&store).unwrap();
    let [shared, kept, used, loose] = ["shared", "kept", "used", "loose"].map(|name| layer(&store, &work, name));
    record(&store, &work, "kept", &[shared, kept]);
    let in_use = record(&store, &work, "used", &[shared, used]);
    let hold = std::sync::Arc::new(store.use_image(&in_use.manifest_digest().unwrap()).unwrap());
    work.finish().unwrap();
    drop(adding);

    assert!(store.remove_reference("used").unwrap());
    assert!(!store.remove_reference("used").unwrap());
    assert_eq!(store.collect(&cancel).unwrap(), Collected { layers: 1, blobs: 0 });
    assert!(!store.has_layer(&loose));
    let handles = store.layer_handles(&[shared, used], &hold).unwrap();
    drop(hold);
    assert_eq!(store.collect(&cancel).unwrap(), Collected::default(), "a handle keeps its layer");
    let kept_open = handles[0].lock().try_clone_to_owned().unwrap();
    drop(handles);
    assert_eq!(store.collect(&cancel).unwrap(), Collected::default(), "and so does a descriptor");
    drop(kept_open);
    assert_eq!(store.collect(&cancel).unwrap(), Collected { layers: 1, blobs: 2 });
    assert!(store.has_layer(&shared) && store.has_layer(&kept));
    assert!(store.staged().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(store.root().join("locks")).unwrap().count(), 0);
}

#[test]
fn only_one_makes_a_layer_and_a_waiter_hears_cancel() {
    let (_directory, store) = store();
    let digest = Digest::of(b"layer");
    let turn = store.layer_turn(&digest, &Cancel::new(), &mut || {}).unwrap().unwrap();
    let cancel = Cancel::new();
    let mut told = 0;
    let result = store.layer_turn(&digest, &cancel, &mut || {
        told += 1;
        cancel.cancel();
    });
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(told, 1);

    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.layer_turn(&digest, &Cancel::new(), &mut || {}).unwrap().is_none());
        let work = Work::begin(&store).unwrap();
        layer(&store, &work, "layer");
        drop(turn);
        assert!(waiter.join().unwrap(), "made by the other one");
    });
}

#[test]
fn collectors_wait_for_adders() {
    let (_directory, store) = store();
    let adding = store.adding(&Cancel::new()).unwrap();
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| store.collect(&cancel));
        cancel.cancel();
        assert_eq!(collector.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    });
    drop(adding);
    store.collect(&Cancel::new()).unwrap();
}
