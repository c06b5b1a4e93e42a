"""`rackray inventory`: Ansible's inventory protocol, so that the playbooks also run by hand."""

import click

from orchestrator import wiring
from orchestrator.cli.output import print_json
from orchestrator.domain.errors import BadInput
from orchestrator.planning.site import Site


@click.command()
@click.option("--list", "listing", is_flag=True, help="All nodes, grouped by rack, leaf, feed and state.")
@click.option("--host", default="", help="Variables of one node.")
def inventory(listing: bool, host: str) -> None:
    """Ansible's inventory protocol, from the applied spec."""
    if not listing and not host:
        raise BadInput(
            "say --list or --host NODE", "ansible-playbook -i SCRIPT calls it with --list, where SCRIPT runs `rackray inventory`"
        )
    views = wiring.open_views(wiring.home())
    spec = views.state.spec
    assert spec is not None, "open_views refuses a home without a spec"  # noqa: S101
    variables = wiring.ansible_variables(wiring.home(), views)
    if host:
        print_json(variables.get(host, {}))
        return
    site = Site.of(spec)
    groups: dict[str, dict[str, list[str]]] = {}
    for name in site.computes:
        labels = site.labels(name)
        for group in (
            f"rack_{labels['rack']}",
            f"leaf_{labels['leaf']}",
            f"feed_{labels['feed']}",
            f"state_{views.state.nodes[name].state}",
        ):
            groups.setdefault(group.replace("-", "_"), {"hosts": []})["hosts"].append(name)
    print_json({"_meta": {"hostvars": variables}, "all": {"children": sorted(groups)}, **groups})
