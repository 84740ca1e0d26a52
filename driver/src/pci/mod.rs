//! PCI addresses, configuration space, capabilities, and sysfs.
