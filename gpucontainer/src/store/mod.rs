//! Content-addressed storage: blobs, layers, references, locks and garbage collection.
