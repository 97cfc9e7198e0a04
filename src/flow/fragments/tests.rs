//! Tests of the datagrams under way.
