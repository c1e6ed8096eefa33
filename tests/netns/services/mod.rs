//! Virtual services with real servers and clients: nginx asked by curl, load by iperf3, in both modes and families.

mod changes;
mod databases;
mod descriptors;
mod farm;
mod floods;
mod kinds;
mod load;
mod own;
mod reload;
mod traffic;
mod xdp;
