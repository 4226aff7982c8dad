//! dmopt: the API on one screen.
