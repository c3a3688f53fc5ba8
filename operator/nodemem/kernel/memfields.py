"""What each field of /proc/meminfo means. Apart from meminfo.py, so that an agent, which explains nothing, has no use
for it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """One line of /proc/meminfo. ``part``: the part of the partition it is counted in, None if it is a limit, a
    different view of memory counted elsewhere, or no memory at all. ``since``: first release, None for 3.10 or before.
    """

    name: str
    meaning: str
    high: str
    look_next: str
    part: str | None = None
    since: str | None = None
    unit: str = "bytes"


_REPORT = "nodemem report"
_KERNEL = "nodemem meminfo --all"


def _define(*fields: Field) -> dict[str, Field]:
    return {entry.name: entry for entry in fields}


FIELDS: dict[str, Field] = _define(
    Field(
        "MemTotal",
        "RAM the kernel hands out: what is installed less firmware, the kernel's image and its page descriptors.",
        "It is fixed after boot, but for memory hot-plug and for balloon drivers that take it back for the host.",
        "dmesg | grep Memory: shows what was reserved at boot.",
    ),
    Field(
        "MemFree",
        "RAM that holds nothing at all. Small on a healthy machine: idle memory is used as cache.",
        "After boot, or after a large process or tmpfs file went away.",
        "MemAvailable says how much can be had; MemFree alone says little.",
        "free",
    ),
    Field(
        "MemAvailable",
        "The kernel's estimate of what new programs can get without swapping: free, plus cache that can be dropped.",
        "Low is the bad direction: Shmem, AnonPages and SUnreclaim can't be dropped. tmpfs lowers it byte by byte.",
        _REPORT,
        since="3.14",
    ),
    Field(
        "Buffers",
        "Cache of raw block devices: file system metadata, and devices read directly (dd, backups).",
        "Large directories on ext4, fsck, image backups. Dropped when memory is needed.",
        "lsof /dev/sd* /dev/nvme* for readers of raw devices.",
        "buffers",
    ),
    Field(
        "Cached",
        "Contents of files kept in RAM. Includes Shmem: the part that is tmpfs and shared memory can't be dropped.",
        "Files read or written once. Only Cached minus Shmem is cache; ramfs, guest memory of confidential VMs and "
        "memfd_secret hide in it too, see Unevictable.",
        "nodemem report splits it; compare Shmem and Unevictable.",
        "pageCache",
    ),
    Field(
        "SwapCached",
        "Pages that are in RAM and still have their copy in swap, so they can be dropped without writing.",
        "Swapping in and out: memory is or was short. Most of it is counted in AnonPages as well.",
        "vmstat 1 (columns si, so); nodemem report for who is swapped out.",
        "other",
    ),
    Field(
        "Active",
        "Sum of Active(anon) and Active(file): used recently, reclaimed last.",
        "Normal.",
        "Active(anon) and Active(file).",
    ),
    Field(
        "Inactive",
        "Sum of Inactive(anon) and Inactive(file): not used lately, reclaimed first.",
        "Normal.",
        "Inactive(anon) and Inactive(file).",
    ),
    Field(
        "Active(anon)",
        "Recently used memory of processes and of shared memory and tmpfs, which need swap to be freed.",
        "The working set of processes; tmpfs counts here although it is in no process.",
        _REPORT,
    ),
    Field(
        "Inactive(anon)",
        "Memory of processes, shared memory and tmpfs not used lately: the first to be swapped, if there is swap.",
        "tmpfs files nobody reads, leaks, idle programs.",
        "nodemem tmpfs",
    ),
    Field(
        "Active(file)",
        "File cache that was used more than once lately.",
        "Programs and data read often. Dropping it makes the machine slow.",
        "nodemem report (page cache).",
    ),
    Field(
        "Inactive(file)",
        "File cache used once: the first memory the kernel takes back.",
        "Copies, backups, log writing. Harmless.",
        "nodemem report (page cache).",
    ),
    Field(
        "Unevictable",
        "Memory that can't be reclaimed or swapped: mlocked, ramfs, locked shared memory, secret memory.",
        "mlockall in databases and real-time programs; files in a ramfs; confidential VM memory. What exceeds Mlocked "
        "is ramfs, SHM_LOCK, memfd_secret or guest_memfd.",
        "grep VmLck /proc/*/status; findmnt -t ramfs",
    ),
    Field(
        "Mlocked",
        "Memory that processes locked with mlock.",
        "Databases, real-time programs, service meshes, QEMU with locked memory.",
        "grep VmLck /proc/*/status",
    ),
    Field(
        "HighTotal",
        "32-bit only: RAM the kernel can't address directly.",
        "Fixed.",
        "A 64-bit kernel.",
    ),
    Field("HighFree", "32-bit only: the free part of high memory.", "Like MemFree.", "LowFree: it runs out first."),
    Field("LowTotal", "32-bit only: RAM the kernel can use for itself.", "Fixed, at most about 896 MiB.", "LowFree"),
    Field(
        "LowFree",
        "32-bit only: free memory usable by the kernel. If it runs out, the OOM killer comes with high memory free.",
        "Low is the bad direction: slab and page tables live here.",
        _KERNEL,
    ),
    Field("MmapCopy", "No-MMU kernels: memory allocated for private copies of mappings.", "Many programs.", "ps"),
    Field(
        "SwapTotal",
        "Size of all swap areas.",
        "Configuration. Kubernetes nodes often have none: then anonymous memory and tmpfs can never leave RAM.",
        "swapon --show",
    ),
    Field(
        "SwapFree",
        "Swap that holds nothing.",
        "Low is the bad direction: when it is used up, the next shortage is an OOM kill.",
        "nodemem oom rank",
    ),
    Field(
        "Zswap",
        "RAM that holds compressed pages on their way to swap.",
        "Memory pressure with zswap on. Costs RAM to save RAM.",
        "grep -r . /sys/module/zswap/parameters; compare Zswapped for the ratio.",
        "other",
        "5.19",
    ),
    Field(
        "Zswapped",
        "What the pages in Zswap would take uncompressed. Not RAM: compare it with Zswap for the ratio.",
        "Memory pressure with zswap on.",
        "Zswap",
        since="5.19",
    ),
    Field(
        "Dirty",
        "File contents changed in RAM and not yet on disk. Part of Cached.",
        "Heavy writing, a slow disk or NFS server. High for long: the disk can't keep up.",
        "iostat -x 1; /proc/sys/vm/dirty_ratio",
    ),
    Field(
        "Writeback",
        "File contents being written to disk now. Part of Cached.",
        "High for long: a slow or hanging disk, NFS or FUSE server.",
        "iostat -x 1; dmesg | grep 'blocked for more'",
    ),
    Field(
        "AnonPages",
        "Private memory of processes: heap, stacks, anonymous mappings. In their RSS.",
        "Programs use it: a leak if it grows for days.",
        "nodemem report (top processes); nodemem oom rank",
        "anonymous",
    ),
    Field(
        "Mapped",
        "File cache and shared memory that some process maps. Part of Cached and Shmem, not in addition.",
        "Programs, libraries, memory-mapped databases, shared memory in use.",
        "nodemem report (Shmem by source).",
    ),
    Field(
        "Shmem",
        "tmpfs files and shared memory. Can't be dropped; without swap it stays until the file is deleted.",
        "Logs or data in a tmpfs such as /run, /tmp, /dev/shm or a Memory emptyDir; SysV segments; memfds; deleted "
        "files that are still open. Often in no process: top doesn't show it.",
        "nodemem report, then nodemem tmpfs ls PATH",
        "shmem",
    ),
    Field(
        "KReclaimable",
        "Kernel memory that can be freed under pressure: SReclaimable, and page pools of some drivers.",
        "See SReclaimable.",
        _KERNEL,
        "other",
        "4.20",
    ),
    Field(
        "Slab",
        "Kernel objects: SReclaimable plus SUnreclaim. In no process.",
        "See the two.",
        _KERNEL,
    ),
    Field(
        "SReclaimable",
        "Kernel objects that can be dropped, mostly cached file names (dentry) and inodes.",
        "Programs that look at very many files: find, backups, log shippers, or look-ups of names that don't exist.",
        "nodemem meminfo --all (slab caches); slabtop -s c",
        "slabReclaimable",
    ),
    Field(
        "SUnreclaim",
        "Kernel objects in use: sockets, tasks, file handles, cgroups, kmalloc. Can't be dropped.",
        "Very many connections, threads or open files; dead memory cgroups; a driver's leak if one cache only grows.",
        "nodemem meminfo --all (slab caches, dying cgroups); slabtop -s c",
        "slabUnreclaimable",
    ),
    Field(
        "KernelStack",
        "A stack of 16 KiB (on x86-64 and arm64) in the kernel for each thread.",
        "Very many threads: 16 GiB are a million threads.",
        "ps -eLf | wc -l; nodemem report (top processes)",
        "kernelStack",
    ),
    Field(
        "ShadowCallStack",
        "Second kernel stacks of hardened arm64 kernels that hold return addresses.",
        "Very many threads, like KernelStack. Part of VmallocUsed.",
        "KernelStack",
        since="5.8",
    ),
    Field(
        "PageTables",
        "Tables that map the memory of processes. In no RSS, but charged to the process by the OOM killer.",
        "Many processes that map the same large shared memory (databases without huge pages); huge sparse mappings.",
        "grep VmPTE /proc/*/status | sort -nk2 | tail; nodemem oom rank",
        "pageTables",
    ),
    Field(
        "SecPageTables",
        "Page tables for virtual machines (KVM) and, on newer kernels, for devices (IOMMU).",
        "Large virtual machines with small pages.",
        "ls /sys/kernel/debug/kvm; huge pages for the guests",
        "pageTables",
        "6.1",
    ),
    Field(
        "Quicklists",
        "Free pages kept aside for page tables on a few old architectures. Gone in 5.4.",
        "Many processes that came and went.",
        "PageTables",
        "other",
    ),
    Field(
        "NFS_Unstable",
        "Written to an NFS server that has not yet confirmed. Part of Cached; always 0 since 5.8.",
        "A slow NFS server.",
        "nfsstat; mount -t nfs,nfs4",
    ),
    Field(
        "Bounce",
        "Copies for devices that can't reach high memory. Always 0 on 64-bit and on recent kernels.",
        "Old devices on 32-bit machines.",
        "lspci",
        "other",
    ),
    Field(
        "WritebackTmp",
        "Copies that FUSE makes of pages being written. Always 0 on recent kernels.",
        "A FUSE file system with a slow server, written to by mmap.",
        "mount -t fuse; ls /sys/fs/fuse/connections",
        "other",
    ),
    Field(
        "CommitLimit",
        "Limit of promised memory. Only enforced with vm.overcommit_memory=2.",
        "Configuration: overcommit_ratio of RAM, plus swap.",
        "sysctl vm.overcommit_memory vm.overcommit_ratio",
    ),
    Field(
        "Committed_AS",
        "Memory that processes were promised, touched or not. Not memory in use.",
        "Programs that reserve much and use little (Java, Go, sanitizers). Far above MemTotal: if all use theirs, OOM.",
        "grep VmData /proc/*/status | sort -nk2 | tail",
    ),
    Field(
        "VmallocTotal",
        "Size of the address range for vmalloc. Not memory.",
        "Fixed, and huge on 64-bit.",
        "Nothing to look at.",
    ),
    Field(
        "VmallocUsed",
        "Kernel memory allocated in pieces: kernel stacks, modules, BPF, large tables. Includes most KernelStack.",
        "Many threads; large BPF maps, conntrack or firewall tables; drivers. Before 5.3 it is not memory: 0, or "
        "address space in use.",
        "nodemem meminfo --all (vmalloc callers)",
        "vmalloc",
    ),
    Field(
        "VmallocChunk",
        "Largest free piece of the vmalloc range. Not memory; always 0 since 4.4.",
        "Nothing to worry about on 64-bit.",
        "Nothing to look at.",
    ),
    Field(
        "Percpu",
        "Kernel variables that exist once per CPU, all CPUs together.",
        "Many CPUs with many cgroups, network devices or BPF maps: every memory cgroup has some, dead ones too.",
        "nodemem meminfo --all (dying cgroups)",
        "perCpu",
        "4.20",
    ),
    Field(
        "EarlyMemtestBad",
        "RAM that the boot-time memory test (memtest=) found bad and took out of use. Not in MemTotal.",
        "Broken memory modules.",
        "dmesg | grep -i memtest; replace the module",
        since="6.4",
    ),
    Field(
        "HardwareCorrupted",
        "RAM taken out of use because the hardware reported uncorrectable errors.",
        "Broken memory modules: 4 kB per bad page.",
        "dmesg | grep -i 'memory failure'; rasdaemon; replace the module",
        "other",
    ),
    Field(
        "AnonHugePages",
        "The part of AnonPages in transparent huge pages.",
        "Transparent huge pages on; may make programs use more than they touched.",
        "cat /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    Field(
        "ShmemHugePages",
        "The part of Shmem in huge pages.",
        "tmpfs mounted with huge=, or shmem_enabled.",
        "cat /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        since="4.8",
    ),
    Field(
        "ShmemPmdMapped",
        "The part of ShmemHugePages that processes map with huge entries.",
        "Shared memory in huge pages, in use.",
        "ShmemHugePages",
        since="4.8",
    ),
    Field(
        "FileHugePages",
        "The part of the page cache in huge pages.",
        "Large folios of XFS and others, or khugepaged for program text.",
        "cat /sys/kernel/mm/transparent_hugepage/enabled",
        since="5.4",
    ),
    Field(
        "FilePmdMapped",
        "The part of FileHugePages that processes map with huge entries.",
        "Program text in huge pages.",
        "FileHugePages",
        since="5.4",
    ),
    Field(
        "CmaTotal",
        "RAM set aside so that drivers can get large contiguous pieces. Others may use it meanwhile.",
        "Boot parameter cma= or hugetlb_cma=, device tree.",
        "dmesg | grep -i cma",
        since="3.19",
    ),
    Field(
        "CmaFree",
        "The free part of CmaTotal. Included in MemFree, but the kernel can't use it for itself.",
        "If most of MemFree is CmaFree, kernel allocations may fail although memory looks free.",
        "cat /proc/pagetypeinfo",
        since="3.19",
    ),
    Field(
        "Unaccepted",
        "Confidential VM: memory the guest has not yet taken from its host. Included in MemFree.",
        "Right after boot of a TDX or SEV-SNP guest.",
        "dmesg | grep -i accept",
        since="6.5",
    ),
    Field(
        "Balloon",
        "Memory a virtual machine gave back to its host. Still in MemTotal with VMware and with deflate-on-OOM.",
        "The host is short of memory, or overcommits it.",
        "Ask the hypervisor; grep balloon /proc/vmstat",
        "other",
        "6.16",
    ),
    Field(
        "GPUActive",
        "System RAM that graphics drivers hold for GPU objects. In no process and no cgroup.",
        "GPU workloads; integrated GPUs use RAM as video memory.",
        "cat /proc/*/fdinfo/* | grep drm-; nvidia-smi, rocm-smi, intel_gpu_top",
        "other",
        "7.1",
    ),
    Field(
        "GPUReclaim",
        "Freed GPU memory that drivers keep for reuse; given back under pressure.",
        "GPU programs that came and went. Some 7.x kernels count too much here, even more than MemTotal.",
        "/sys/kernel/debug/ttm/page_pool",
        "other",
        "7.1",
    ),
    Field(
        "HugePages_Total",
        "Number of reserved huge pages of the default size. Taken from everyone else, used or not.",
        "vm.nr_hugepages, boot parameter hugepages=, databases, DPDK, virtual machines.",
        "grep . /sys/kernel/mm/hugepages/*/nr_hugepages",
        "hugePages",
        unit="pages",
    ),
    Field(
        "HugePages_Free",
        "Reserved huge pages that hold nothing. Memory that is lost if nobody wants them.",
        "A pool set larger than its users need.",
        "sysctl vm.nr_hugepages",
        unit="pages",
    ),
    Field(
        "HugePages_Rsvd",
        "Free huge pages already promised to a mapping that has not touched them.",
        "Programs that mapped huge pages and did not use them yet.",
        "grep HugetlbPages /proc/*/status",
        unit="pages",
    ),
    Field(
        "HugePages_Surp",
        "Huge pages beyond the configured pool, allocated on demand.",
        "vm.nr_overcommit_hugepages allows them.",
        "sysctl vm.nr_overcommit_hugepages",
        unit="pages",
    ),
    Field("Hugepagesize", "Size of a default huge page. Not memory in use.", "Fixed.", "Hugetlb"),
    Field(
        "Hugetlb",
        "All reserved huge pages of all sizes, in bytes. In no process's RSS.",
        "See HugePages_Total.",
        "grep . /sys/kernel/mm/hugepages/*/nr_hugepages; grep HugetlbPages /proc/*/status",
        "hugePages",
        "4.16",
    ),
    Field(
        "DirectMap4k",
        "How much RAM the kernel maps for itself in 4 KiB pieces. A view of all RAM, not memory in use.",
        "Modules, BPF and debugging split larger pieces; costs a little speed.",
        "Nothing to look at.",
    ),
    Field(
        "DirectMap64k", "RAM the kernel maps in 64 KiB pieces (powerpc). Not memory in use.", "Normal.", "DirectMap4k"
    ),
    Field("DirectMap1M", "RAM the kernel maps in 1 MiB pieces (s390). Not memory in use.", "Normal.", "DirectMap4k"),
    Field("DirectMap2M", "RAM the kernel maps in 2 MiB pieces. Not memory in use.", "Normal.", "DirectMap4k"),
    Field(
        "DirectMap4M", "RAM the kernel maps in 4 MiB pieces (32-bit x86). Not memory in use.", "Normal.", "DirectMap4k"
    ),
    Field("DirectMap1G", "RAM the kernel maps in 1 GiB pieces. Not memory in use.", "Normal.", "DirectMap4k"),
    Field("DirectMap2G", "RAM the kernel maps in 2 GiB pieces (s390). Not memory in use.", "Normal.", "DirectMap4k"),
    Field(
        "PDT_max_entries",
        "PA-RISC: how many bad pages the firmware's table can hold.",
        "Fixed.",
        "PDT_cur_entries",
        unit="entries",
    ),
    Field(
        "PDT_cur_entries",
        "PA-RISC: bad pages in the firmware's table.",
        "Broken memory modules.",
        "dmesg | grep PDT",
        unit="entries",
    ),
    Field(
        "TDX", "Memory given to the TDX module for confidential guests.", "Running TDX guests.", "dmesg | grep -i tdx"
    ),
    Field(
        "ReliableTotal",
        "openEuler: RAM that the hardware mirrors. A view of memory counted elsewhere.",
        "Configuration.",
        "dmesg | grep -i mirror",
    ),
    Field("ReliableUsed", "openEuler: the used part of mirrored RAM.", "Kernel and chosen programs.", "ReliableTotal"),
    Field("ReliableTaskUsed", "openEuler: mirrored RAM used by programs.", "Chosen programs.", "ReliableTotal"),
    Field("ReliableBuddyMem", "openEuler: the free part of mirrored RAM.", "Like MemFree.", "ReliableTotal"),
    Field("ReliableShmem", "openEuler: Shmem in mirrored RAM.", "See Shmem.", "nodemem tmpfs"),
    Field("FileCache", "openEuler: Active(file) plus Inactive(file).", "See Cached.", _REPORT),
    Field("ReliableFileCache", "openEuler: file cache in mirrored RAM.", "See Cached.", "ReliableTotal"),
)


def describe(name: str) -> Field | None:
    """The meaning of a field, also of a direct-map size that is not listed. None: a field of a vendor's kernel."""
    if (known := FIELDS.get(name)) is None and (match := re.fullmatch(r"DirectMap(\d+)([kMGT])", name)):
        size = f"{match[1]} {match[2].upper()}iB"
        return Field(name, f"RAM the kernel maps in {size} pieces. Not memory in use.", "Normal.", "DirectMap4k")
    return known
