//! UnaMesh
