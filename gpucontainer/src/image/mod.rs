//! Images: references, manifests, configuration, registries, archives, building.
