"""One look at the host, for a command."""

from vm_onetoone_nat.commands.privileges import require_net_admin
from vm_onetoone_nat.decide.reconcile import Look, look
from vm_onetoone_nat.kernel.kernel import Kernel
from vm_onetoone_nat.model.configuration import Configuration
from vm_onetoone_nat.service.instance import runtime_path
from vm_onetoone_nat.store.file import FileStore
from vm_onetoone_nat.virt.once import LibvirtOnce


def look_at_host(configuration: Configuration) -> Look:
    """The kernel's and libvirt's state, and the desired one. Raises PrivilegeError, KernelError."""
    require_net_admin()
    kernel = Kernel(runtime_path())
    libvirt = LibvirtOnce(configuration.libvirt_uri, guest_agent=configuration.guest_agent)
    return look(configuration, libvirt, kernel, FileStore())
