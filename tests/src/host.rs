//! The part of the harness that runs on the host: boots guests and reports.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::guest::{CaseResult, RUN_CASES};
use crate::{Dice, Scenario};

/// Names what a user does without; `guest` leaves these suites out, and the name of a scenario,
/// up to its first `_`, those of that name. They show as ignored.
const WITHOUT: &str = "VFIO_DMA_WITHOUT";

/// Guests that run at once: each keeps about one processor busy.
const GUESTS: usize = 2;

/// Results of every scenario, as they come.
#[derive(Default)]
struct Results {
    /// By scenario: what its cases came to, or why the guest gave nothing.
    done: Mutex<HashMap<&'static str, Result<Vec<CaseResult>, String>>>,
    changed: Condvar,
}

impl Results {
    fn put(&self, scenario: &'static str, result: Result<Vec<CaseResult>, String>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(scenario, result);
        self.changed.notify_all();
    }

    /// Waits for a scenario's end; the runner bounds every guest's time.
    fn case(&self, scenario: &'static str, name: &str) -> Result<CaseResult, String> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = done.get(scenario) {
                let cases = result.as_ref().map_err(Clone::clone)?;
                return cases
                    .iter()
                    .find(|case| case.case == name)
                    .cloned()
                    .ok_or_else(|| format!("the guest ended without a result of {name}"));
            }
            done = self.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Whether `VFIO_DMA_WITHOUT` leaves out what has this name.
#[must_use]
pub fn is_left_out(name: &str) -> bool {
    std::env::var(WITHOUT).is_ok_and(|list| list.split(',').any(|word| word == name))
}

/// What scenarios have in common: `rtl` of `rtl_linux`.
fn family(scenario: &str) -> &str {
    scenario.split('_').next().unwrap_or(scenario)
}

/// Boots the guests of what was selected and reports every case as a test.
pub(crate) fn main(scenarios: Vec<Scenario>) -> ExitCode {
    let arguments = Arguments::from_args();
    let results = Arc::new(Results::default());
    let mut trials = Vec::new();
    let mut work = Vec::new();
    for scenario in scenarios {
        let without = is_left_out("guest") || is_left_out(family(scenario.name));
        let full = |case: &str| format!("{}::{case}", scenario.name);
        let selected: Vec<&'static str> = scenario
            .cases
            .iter()
            .map(|case| case.name)
            .filter(|case| is_selected(&arguments, &full(case)))
            .collect();
        for case in &scenario.cases {
            let results = Arc::clone(&results);
            let (guest, name) = (scenario.name, case.name);
            let trial = Trial::test(full(name), move || verdict(&results.case(guest, name)));
            trials.push(trial.with_ignored_flag(without));
        }
        if !selected.is_empty() && !without {
            work.push((scenario, selected));
        }
    }
    if !arguments.list {
        boot_all(work, &results);
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether a test of this name runs: the rule of libtest-mimic's own filters.
fn is_selected(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| {
        if arguments.exact { name == filter } else { name.contains(filter.as_str()) }
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

/// Boots the guests in threads of their own, the longest first.
fn boot_all(mut work: Vec<(Scenario, Vec<&'static str>)>, results: &Arc<Results>) {
    work.sort_by_key(|(_, selected)| selected.len());
    let work = Arc::new(Mutex::new(work));
    for _ in 0..GUESTS {
        let (work, results) = (Arc::clone(&work), Arc::clone(results));
        std::thread::spawn(move || {
            let next = || work.lock().unwrap_or_else(PoisonError::into_inner).pop();
            while let Some((scenario, selected)) = next() {
                let name = scenario.name;
                // A panic of the runner must not leave tests waiting.
                let run = std::panic::AssertUnwindSafe(|| boot(&scenario, &selected));
                let result = std::panic::catch_unwind(run)
                    .unwrap_or_else(|_| Err("the runner panicked, see above".into()));
                results.put(name, result);
            }
        });
    }
}

fn boot(scenario: &Scenario, selected: &[&str]) -> Result<Vec<CaseResult>, String> {
    let mut command = vec!["/bin/vfio-dma", RUN_CASES, scenario.name];
    command.extend(selected);
    let mut machine = (scenario.machine)();
    if let Ok(seed) = std::env::var(Dice::SEED) {
        machine.vm.env.push((Dice::SEED.into(), seed.into()));
    }
    let output = machine.vm.run(&command).map_err(|error| error.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let cases: Vec<CaseResult> =
        stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if cases.is_empty() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the guest reported nothing; it said:\n{stdout}{stderr}"));
    }
    let wrong = (machine.verify)().err().map(|why| format!("on the host: {why}"));
    match wrong {
        // What failed in the guest comes first: the host may only see what is left of it.
        Some(why) if cases.iter().any(|case| !case.passed) => {
            eprintln!("{}: {why}", scenario.name);
            Ok(cases)
        }
        Some(why) => Err(why),
        None => Ok(cases),
    }
}

fn verdict(result: &Result<CaseResult, String>) -> Result<(), Failed> {
    match result {
        Ok(case) if case.passed => Ok(()),
        Ok(case) => Err(format!("failed after {:.1} s:\n{}", case.seconds, case.output).into()),
        Err(why) => Err(why.into()),
    }
}
