//! System call filters: the profile and the program made of it.
