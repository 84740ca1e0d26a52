//! What this command offers for the remedies of the library's errors.

use std::error::Error;

use vfio_dma::Remedy;
use vfio_dma::backend::BackendError;
use vfio_dma::device::DeviceError;
use vfio_dma::devices::recipe::RecipeError;
use vfio_dma::host::HostError;
use vfio_dma::pci::sysfs::SysfsError;
use vfio_dma::pci::{Address, PciError};

use super::output::as_typed;

/// An error's text, with the command or option to type for each remedy that has one.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut hints: Vec<String> = remedies(error).into_iter().filter_map(hint).collect();
    hints.dedup();
    for hint in hints {
        text.push_str("\n  ");
        text.push_str(&hint);
    }
    text
}

/// The remedies of an error and of those behind it.
fn remedies<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a Remedy> {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    // What an error passes on of the one behind it is the same remedy.
    chain.map(own_remedies).find(|remedies| !remedies.is_empty()).unwrap_or_default()
}

fn own_remedies<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a Remedy> {
    if let Some(error) = error.downcast_ref::<BackendError>() {
        return of_backend(error);
    }
    let remedy = match error.downcast_ref::<DeviceError>() {
        Some(DeviceError::Backend(error)) => return of_backend(error),
        Some(error) => error.remedy(),
        None => None,
    };
    remedy
        .or_else(|| error.downcast_ref::<HostError>()?.remedy())
        .or_else(|| error.downcast_ref::<SysfsError>()?.remedy())
        .or_else(|| error.downcast_ref::<PciError>()?.remedy())
        .or_else(|| error.downcast_ref::<RecipeError>()?.remedy())
        .into_iter()
        .collect()
}

fn of_backend(error: &BackendError) -> Vec<&Remedy> {
    match error {
        BackendError::NoAccess { refusals, .. } => {
            refusals.iter().flat_map(|(_, refusal)| of_backend(refusal)).collect()
        }
        error => error.remedy().into_iter().collect(),
    }
}

/// The command or option that carries a remedy out, or says more about it.
pub(super) fn hint(remedy: &Remedy) -> Option<String> {
    let command = |command: String| Some(format!("command: {}", as_typed(&command)));
    let option = |option: &str| Some(format!("option: {option}"));
    match remedy {
        Remedy::ListFunctions => command("vfio-dma list".into()),
        Remedy::BindToVfioPci { address } => command(format!("vfio-dma bind {address}")),
        Remedy::OwnFunctions { functions } => {
            let commands: Vec<_> =
                functions.iter().map(|function| format!("vfio-dma bind {function}")).collect();
            command(commands.join("; "))
        }
        Remedy::Rebind { address } => {
            command(format!("vfio-dma unbind {address} && vfio-dma bind {address}"))
        }
        Remedy::Unbind { address } => command(format!("vfio-dma unbind {address}")),
        Remedy::FreeGroup { members } if members.is_empty() => command("vfio-dma list".into()),
        Remedy::FreeGroup { members } => {
            // Members on other buses are not bound so.
            let functions = members.iter().filter(|member| member.parse::<Address>().is_ok());
            let commands: Vec<_> = functions.map(|name| format!("vfio-dma bind {name}")).collect();
            if commands.is_empty() { None } else { command(commands.join("; ")) }
        }
        Remedy::EnableIommu | Remedy::CheckSetup => command("vfio-dma doctor".into()),
        Remedy::AskForNoIommu => option("--iommu noiommu"),
        Remedy::EndUses { .. } => option("--force, to take it all the same"),
        Remedy::GiveVfToken { .. } => option("--vf-token UUID"),
        Remedy::BringBack => command("vfio-dma rescan".into()),
        Remedy::EnableDecoding { address, ports } => {
            let bit = if *ports { "io-space" } else { "memory-space" };
            command(format!("vfio-dma config {address} COMMAND.{bit}=1"))
        }
        Remedy::UseIommu => option("--iommu type1 or --iommu iommufd"),
        Remedy::UseType1 => option("--iommu type1"),
        Remedy::StartServer { socket, .. } => {
            command(format!("vfio-dma model --socket {}", socket.display()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;
    use crate::bench::BenchError;
    use vfio_dma::devices::CopyError;
    use vfio_dma::devices::edu::EduError;
    use vfio_dma::devices::ioat::IoatError;

    fn refusal(remedy: Remedy) -> BackendError {
        BackendError::Precondition { problem: "it is refused".into(), remedy }
    }

    fn explained(error: impl Into<Failure>) -> String {
        explain(&*error.into())
    }

    #[test]
    fn each_remedy_that_this_program_carries_out_has_its_words() {
        let address = "0000:00:05.0".parse().unwrap();
        let members = vec!["0000:00:05.1".to_owned(), "pnp:3".into(), "0000:00:05.2".into()];
        for (remedy, words) in [
            (Remedy::ListFunctions, "command: vfio-dma list"),
            (Remedy::BindToVfioPci { address }, "command: vfio-dma bind 0000:00:05.0"),
            (
                Remedy::Rebind { address },
                "command: vfio-dma unbind 0000:00:05.0 && vfio-dma bind 0000:00:05.0",
            ),
            (Remedy::Unbind { address }, "command: vfio-dma unbind 0000:00:05.0"),
            (
                Remedy::FreeGroup { members },
                "command: vfio-dma bind 0000:00:05.1; vfio-dma bind 0000:00:05.2",
            ),
            (Remedy::EnableIommu, "command: vfio-dma doctor"),
            (Remedy::CheckSetup, "command: vfio-dma doctor"),
            (Remedy::AskForNoIommu, "option: --iommu noiommu"),
            (Remedy::UseIommu, "option: --iommu type1 or --iommu iommufd"),
            (Remedy::UseType1, "option: --iommu type1"),
            (Remedy::EndUses { commands: vec![] }, "option: --force, to take it all the same"),
            (
                Remedy::StartServer { socket: "/tmp/s".into(), first: "start one" },
                "command: vfio-dma model --socket /tmp/s",
            ),
        ] {
            let text = explained(refusal(remedy));
            assert_eq!(text.lines().last(), Some(format!("  {words}").as_str()), "{text}");
        }
        let text = explained(refusal("align them".into()));
        assert_eq!(text, "it is refused\n  remedy: align them");
    }

    #[test]
    fn the_remedy_is_found_behind_every_error_that_carries_one() {
        let address = "0000:00:1f.7".parse().unwrap();
        let absent = || SysfsError::NoDevice { address };
        for text in [
            explained(absent()),
            explained(HostError::from(absent())),
            explained(BackendError::from(absent())),
            explained(DeviceError::from(BackendError::from(absent()))),
            explained(BenchError::from(DeviceError::from(BackendError::from(absent())))),
            explained(EduError::from(DeviceError::from(BackendError::from(absent())))),
            explained(IoatError::from(DeviceError::from(BackendError::from(absent())))),
            explained(CopyError::engine(IoatError::from(DeviceError::Backend(absent().into())))),
        ] {
            assert!(text.starts_with("no PCI device 0000:00:1f.7\n"), "{text}");
            assert!(text.ends_with("\n  command: vfio-dma list"), "{text}");
        }
        assert_eq!(explained("no more than a text"), "no more than a text");
    }

    #[test]
    fn each_method_that_failed_has_its_remedy() {
        let address = "0000:00:05.0".parse().unwrap();
        let refusals = vec![
            ("type1", refusal(Remedy::BindToVfioPci { address })),
            ("iommufd", refusal(Remedy::UseType1)),
        ];
        let error = BackendError::NoAccess { location: address.to_string(), refusals };
        let text = explained(DeviceError::from(error));
        assert!(text.ends_with("\n  command: vfio-dma bind 0000:00:05.0\n  option: --iommu type1"));
    }
}
