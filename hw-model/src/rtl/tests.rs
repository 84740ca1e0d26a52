//! The protocol with a simulation, against programs that keep it badly or not at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::tlp::Credits;

fn program(dir: &Path, text: &str) -> SimulationConfig {
    let path = dir.join("sim");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    SimulationConfig { timeout: Duration::from_millis(300), ..SimulationConfig::new(path) }
}

fn run(simulation: &mut Simulation) -> Result<Outcome, EndpointError> {
    let credits = Credits { reads: 0, posted_bytes: 0, posted_bytes_per_cycle: 0 };
    let limits = Limits { cycles: 10, after_read: 0, requests_below: 0, quiet: 10, credits };
    let mut outcome = Outcome::default();
    simulation.run(&Settings::default(), &mut Vec::new(), &limits, &mut outcome)?;
    Ok(outcome)
}

#[test]
fn a_simulation_that_misbehaves_is_an_error_that_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |text| {
        let mut simulation = Simulation::start(&program(dir.path(), text)).unwrap();
        run(&mut simulation).unwrap_err().to_string()
    };
    let ended = fails("echo no such memory >&2; exit 3");
    assert!(ended.contains("exit status: 3") && ended.contains("no such memory"), "{ended}");
    let silent = fails("exec sleep 1");
    assert!(silent.contains("did not answer"), "{silent}");
    let short = fails(r"printf '\001\000\000\000\000\000\000\000' >&0; exec sleep 1");
    assert!(short.contains("breaks off"), "{short}");
    let long = fails(r"printf '\377\377\377\377' >&0; exec sleep 1");
    assert!(long.contains("double words"), "{long}");
    let missing = Simulation::start(&SimulationConfig::new(dir.path().join("none"))).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

#[test]
fn events_are_read_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    // now 9, 1 request, 2 completions, quiet 3, busy; a message for vector 5 in cycle 7.
    let words = [12u32, 9, 0, 1, 2, 3, 1, 1, 2, 7, 0, 1, 5];
    let octal: String =
        words.iter().flat_map(|w| w.to_le_bytes()).map(|byte| format!("\\{byte:03o}")).collect();
    let config = program(dir.path(), &format!("printf '{octal}' >&0; exec sleep 1"));
    let outcome = run(&mut Simulation::start(&config).unwrap()).unwrap();
    assert_eq!((outcome.now, outcome.requests, outcome.completions), (9, 1, 2));
    assert_eq!((outcome.quiet, outcome.busy), (3, true));
    assert_eq!(outcome.events, [(7, Event::Interrupt(5))]);
}
