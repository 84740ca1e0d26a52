//! Several devices in one container.

use std::sync::Arc;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::session::Session;
use vfio_dma_tests::address;

use crate::support::{bind, copy_and_verify, share_a_buffer};

fn two() -> (Edu, Edu) {
    bind(address(0));
    bind(address(1));
    let mut session = Session::new();
    let open = |session: &mut Session, index| {
        let device = session.open(address(index)).unwrap();
        Edu::probe(device, Config::default()).unwrap()
    };
    let first = open(&mut session, 0);
    (first, open(&mut session, 1))
}

pub(crate) fn two_devices_share_a_container() {
    let (mut first, mut second) = two();
    assert!(Arc::ptr_eq(first.device().space(), second.device().space()));
    copy_and_verify(&mut first, 3000, 1);
    copy_and_verify(&mut second, 3000, 2);
    drop(share_a_buffer(&mut first, &mut second));
}

pub(crate) fn each_device_frees_its_own() {
    let (first, mut second) = two();
    let space = Arc::clone(second.device().space());
    let of_first =
        [1, 5000, 9000].map(|len| first.allocate(&Request::new(len, Direction::ToDevice)).unwrap());
    let of_second =
        [1, 70_000].map(|len| second.allocate(&Request::new(len, Direction::FromDevice)).unwrap());
    assert_eq!(space.usage().mappings, 5);
    drop(of_first);
    drop(first);
    assert_eq!(space.usage().mappings, 2, "those of the second are untouched");
    let [small, target] = of_second;
    drop(small);
    let target = second.read(target, 0, 0, 4096).unwrap().wait().unwrap();
    drop(target);
    assert_eq!(space.usage().mappings, 0);
    copy_and_verify(&mut second, 500, 4);
}
