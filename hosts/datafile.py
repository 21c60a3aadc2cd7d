"""From a plan and a lease to the data file that the job reads. Pure."""

from datetime import UTC, datetime

from schemas.datafile import (
    DataFile,
    Extension,
    InstackNode,
    LeaseData,
    LeaseTerms,
    MachineData,
    NetworkData,
    NicData,
    Port,
)
from schemas.plan import Domain, Environment, HostPlan, Network
from schemas.status import Lease
from schemas.terms import Terms

_ARCH = "x86_64"
_NO_LEASE = LeaseData(
    id="", environment="", generation=0, granted=datetime.fromtimestamp(0, UTC), timeout_s=0
)


def data_file(plan: HostPlan, env: Environment, lease: LeaseData) -> DataFile:
    """What the holder of `lease` is told about `env`."""
    host_ip = str(plan.public.address.ip)
    return DataFile(
        arch=_ARCH,
        host_ip=host_ip,
        seed_ip=str(env.seed.nics[0].address),
        seed_route_dev=plan.public.bridge,
        env_num=str(env.number),
        remote_host=host_ip,
        nodes=tuple(_instack_node(node) for node in env.nodes),
        testenv=Extension(
            lease=lease,
            host=plan.host,
            networks={
                Network.PUBLIC.value: NetworkData(
                    bridge=plan.public.bridge, cidr=str(plan.public.address.network)
                ),
                Network.PRIVATE.value: NetworkData(bridge=env.bridge),
            },
            seed=_machine(env.seed),
            nodes=tuple(_machine(node) for node in env.nodes),
        ),
    )


def description(plan: HostPlan, env: Environment) -> str:
    """The JSON text of the same for who has no lease: without that part."""
    document = data_file(plan, env, _NO_LEASE)
    return document.model_dump_json(by_alias=True, indent=2, exclude={"testenv": {"lease"}})


def lease_data(lease: Lease, secret: str, terms: Terms | None) -> LeaseData:
    """What the holder of `lease` is told of it. `terms`: None for a person, who sends no beats."""
    return LeaseData(
        id=lease.id,
        environment=lease.environment,
        generation=lease.generation,
        granted=lease.granted,
        timeout_s=lease.timeout_s,
        secret=secret,
        terms=LeaseTerms(**terms._asdict()) if terms else None,
    )


def _instack_node(node: Domain) -> InstackNode:
    return InstackNode(
        name=node.name,
        arch=_ARCH,
        cpu=str(node.cpus),
        memory=str(node.memory_mib),
        disk=str(node.disk.size_gib),
        ports=tuple(Port(address=nic.mac) for nic in node.nics),
    )


def _machine(domain: Domain) -> MachineData:
    return MachineData(
        name=domain.name,
        uuid=str(domain.uuid),
        role=domain.role.value,
        cpus=domain.cpus,
        memory_mib=domain.memory_mib,
        disk_gib=domain.disk.size_gib,
        nics=tuple(
            NicData(
                mac=nic.mac,
                ip=nic.address,
                network=nic.network.value,
                bridge=nic.bridge,
                port=nic.port,
            )
            for nic in domain.nics
        ),
    )
