//! One layer: its archive, and the directory or image it becomes.
