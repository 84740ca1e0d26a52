//! `vfio-dma reset`: of a function, of its slot, of its bus.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::host::{FunctionStatus, ResetPlan, ResetScope, ResetWay, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::Tree;
use vfio_dma::session::Session;

use super::rescan::{self, Came};
use super::{Failure, output, usage};

/// Reset a function, its slot or its bus
///
/// What else a reset hits is said first. Refused while the host uses one of the functions, or a
/// process has one open.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The function's PCI address
    #[arg(value_name = "BDF")]
    address: Address,
    /// How much: the function alone; all functions of its slot, by its power; all that is below
    /// the bridge above it
    #[arg(long, value_enum, default_value_t = ScopeArg::Function)]
    scope: ScopeArg,
    /// With the scope `function`: only this method of those that `show` tells, such as flr or pm
    #[arg(long)]
    method: Option<String>,
    /// With the scope `bus`: by VFIO, as a program that drives all that is hit can: every function
    /// has to be bound to vfio-pci
    #[arg(long)]
    through_vfio: bool,
    /// Reset also what the host uses: what uses it may fail
    #[arg(long)]
    force: bool,
    /// Say what would be reset, and how, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Seconds for functions that have to be found again
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ScopeArg {
    Function,
    Slot,
    Bus,
}

/// What `reset --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    address: Address,
    /// `function`, `slot`, `bus`.
    scope: String,
    /// How, in words.
    way: String,
    /// Every function that is hit.
    hits: Vec<Hit>,
    /// Whether it was reset.
    done: bool,
    /// Of those that were removed for it: what came back.
    came_back: Vec<Came>,
}

#[derive(Debug, Serialize)]
struct Hit {
    address: Address,
    driver: Option<String>,
    /// Who uses it, in words.
    used_by: Vec<String>,
}

/// Says what is hit, and resets.
///
/// # Errors
///
/// Fails when there is no way to reset so much, when the host uses what is hit, and when the
/// kernel refuses.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::new();
    let scope = match args.scope {
        ScopeArg::Function => ResetScope::Function,
        ScopeArg::Slot => ResetScope::Slot,
        ScopeArg::Bus => ResetScope::Bus,
    };
    if args.method.is_some() && scope != ResetScope::Function {
        return Err(usage("--method is for --scope function"));
    }
    if args.through_vfio && scope != ResetScope::Bus {
        return Err(usage("--through-vfio is for --scope bus"));
    }
    let mut plan = sysfs.plan_reset(args.address, scope)?;
    if let (Some(method), ResetWay::Kernel { methods }) = (&args.method, &mut plan.way) {
        if !methods.contains(method) {
            let known = if methods.is_empty() { "none".into() } else { methods.join(", ") };
            return Err(usage(format!(
                "{} has no reset method {method:?}; it has {known}",
                args.address
            )));
        }
        *methods = vec![method.clone()];
    }
    let owned = args.through_vfio.then(|| Owned::open(args.address)).transpose()?;
    let means = match owned {
        Some(_) => "by VFIO, for who has all of them open".into(),
        None => way(&plan.way),
    };
    if !args.json {
        output::print(&announce(&plan, &means))?;
    }
    let came = match owned {
        _ if args.dry_run => Vec::new(),
        Some(owned) => {
            owned.reset()?;
            Vec::new()
        }
        None => sysfs.reset(&plan, args.force, Duration::from_secs(args.wait))?,
    };
    if args.json {
        let report = Report {
            address: args.address,
            scope: scope.to_string(),
            way: means,
            hits: plan.hits.iter().map(hit).collect(),
            done: !args.dry_run,
            came_back: came.into_iter().map(Came::new).collect(),
        };
        output::print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else if args.dry_run {
        output::print("nothing was changed\n")?;
    } else {
        for returned in &came {
            output::print(&rescan::describe(returned))?;
        }
        output::print(&format!("{}: was reset\n", args.address))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn hit(status: &FunctionStatus) -> Hit {
    Hit { address: status.info.address, driver: status.info.driver.clone(), used_by: users(status) }
}

fn users(status: &FunctionStatus) -> Vec<String> {
    let uses = status.uses.iter().map(ToString::to_string);
    uses.chain(status.holders.iter().map(ToString::to_string)).collect()
}

/// All that a reset of a bus hits, open in this process.
struct Owned {
    device: Device,
    others: Vec<Device>,
}

impl Owned {
    /// Opens what is bound to vfio-pci, and refuses when that is not all of it.
    fn open(address: Address) -> Result<Owned, Failure> {
        let mut session = Session::new();
        let device = session.open(address)?;
        let tree = Tree::new();
        let mut others = Vec::new();
        for affected in device.bus_reset_scope()? {
            if affected.address != address && tree.is_with_vfio(affected.address)? {
                others.push(session.open(affected.address)?);
            }
        }
        device.check_bus_reset()?;
        Ok(Owned { device, others })
    }

    fn reset(mut self) -> Result<(), Failure> {
        let mut others: Vec<&mut Device> = self.others.iter_mut().collect();
        Ok(self.device.reset_bus(&mut others)?)
    }
}

/// What is going to be reset, and how.
fn announce(plan: &ResetPlan, means: &str) -> String {
    let mut text = format!("{}: {} reset, {means}\n", plan.address, plan.scope);
    let others: Vec<&FunctionStatus> = plan.others().collect();
    if others.is_empty() {
        text += "  nothing else is hit\n";
    }
    for other in others {
        let driver = other.info.driver.as_deref().unwrap_or("no driver");
        let users = users(other);
        let users = if users.is_empty() {
            "not in use".into()
        } else {
            format!("in use: {}", users.join("; "))
        };
        let class = other.info.class.name();
        text += &format!("  also hit: {} ({class}, {driver}), {users}\n", other.info.address);
    }
    text
}

fn way(way: &ResetWay) -> String {
    match way {
        ResetWay::Kernel { methods } if methods.is_empty() => "by the kernel's method".into(),
        ResetWay::Kernel { methods } => format!("by the kernel: {}", methods.join(", else ")),
        ResetWay::Subordinate { port } => format!("by the kernel, of all below {port}"),
        ResetWay::Pulse { port } => {
            format!("by the bridge {port}: the functions are removed and found again")
        }
        ResetWay::Power { slot } => {
            let name = slot.file_name().unwrap_or_default().to_string_lossy();
            format!("by the power of slot {name}: the functions are removed and found again")
        }
        other => format!("{other:?}"),
    }
}
