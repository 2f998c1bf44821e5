//! Networks and published ports.
