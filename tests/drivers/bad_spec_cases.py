# ruff: noqa: E501 - a case is a row of a table
"""Every kind of bad input a spec can hold, each with its place and its sentence.

A case is lab-4.yaml with one piece of text replaced; `«` in the new text marks the place that the first problem must name.
"""

from typing import NamedTuple


class Bad(NamedTuple):
    """One replacement in lab-4.yaml, and the problem it must lead to."""

    kind: str
    old: str
    new: str
    says: str
    more: int = 0
    """Further problems that follow from the first."""


NAME = "a letter, then at most 62 letters"
ROW = "row: north}\n  r02"
MAC_1 = 'mac: "02:00:00:00:01:01"'
FEEDS = "feeds:\n  A: {limit_w: 17000}\n  B: {limit_w: 17000}"

YAML_CASES = [
    Bad("tab", "  lab-2g:\n    manu", "  lab-2g:\n«\tmanu", "a tab is used for indentation; use spaces"),
    Bad("duplicate key", "  B: {limit_w: 17000}", "  B: {limit_w: 17000}\n  «B: {limit_w: 1}", "the key `B` stands here a second time"),
    Bad("duplicate key inside", "42, limit_w: 12000, feed: A", "42, limit_w: 12000, feed: A, «units: 1", "the key `units` stands here a second time"),
    Bad("python tag", "model: LAB-2G", "model: «!!python/name:os.system x", "the tag tag:yaml.org,2002:python/name:os.system is not read"),
    Bad("harmless tag", "model: LAB-2G", "model: «!!str LAB-2G", "the tag tag:yaml.org,2002:str is not read"),
    Bad("alias", FEEDS, "feeds:\n  A: «&a {limit_w: 17000}\n  B: *a", "&a is an anchor; anchors and aliases are not read", 1),
    Bad("recursive alias", "approved: [\"2.7.4\"]", "approved: «&a [*a]", "&a is an anchor; anchors and aliases are not read", 1),
    Bad("depth", ROW, "row: " + "[" * 29 + "«" + "[" * 471 + "]" * 500 + "}\n  r02", "lists and mappings are nested more than 32 deep here"),
    Bad("merge key", "r02: {units: 42", "r02: {«<<: {leaf: x}, units: 42", "<< is a merge key; merge keys are not read; write the keys out"),
    Bad("two documents", "rollout:", "«---\nrollout:", "a second YAML document begins here; keep one document in a file"),
    Bad("MAC as number", MAC_1, "mac: «10:20:30:40:50:10", '10:20:30:40:50:10 without quotes is read by YAML as the base-60 number 8041827010; quote it: "10:20:30:40:50:10"'),
    Bad("time as number", ROW, "row: «22:30}\n  r02", "22:30 without quotes is read by YAML as the base-60 number 1350"),
    Bad("no as text", ROW, "row: «no}\n  r02", 'YAML readers disagree whether no is text or a truth value; write "no" in quotes for text, true or false for a switch'),
    Bad("on as switch", MAC_1, "insecure_bmc: «on", "YAML readers disagree whether on is text or a truth value"),
    Bad("true as text", ROW, "row: «true}\n  r02", 'racks.r01.row must be text, but true without quotes is read as a truth value; quote it: "true"'),
    Bad("no as key", "  lab-2g:\n    BMC", "  lab-2g:\n    «no", 'the key no is not read as text by YAML; quote it: "no"'),
    Bad("octal", "serial: LAB00001", "serial: «010", '010 begins with a zero: YAML may read it as an octal number; write "010" in quotes for text, 10 for a number'),
    Bad("hexadecimal", "serial: LAB00001", "serial: «0x1F", "0x1F is read by YAML as a number in another base"),
    Bad("underscores", "limit_w: 12000, feed: A", "limit_w: «12_000, feed: A", "12_000 is read by YAML as a number without its underscores"),
    Bad("digits as text", "serial: LAB00001", "serial: «12345", 'nodes[0].serial (r01-n1) must be text, but 12345 without quotes is read as the number 12345; quote it: "12345"'),
    Bad("version as number", '["7.10"]', "[«7.10]", 'firmware.lab-2g.BMC.approved[0] must be text, but 7.10 without quotes is read as the number 7.1; quote it: "7.10"'),
    Bad("date", "name: lab-node", "name: «2024-01-02", '2024-01-02 without quotes is read by YAML as a date; quote it: "2024-01-02"'),
    Bad("nan", "idle_w: 900", "idle_w: «.nan", ".nan is not a quantity; write a finite number"),
    Bad("infinity", "max_w: 2600", "max_w: «.inf", ".inf is not a quantity; write a finite number"),
    Bad("overflow to infinity", "max_w: 2600", "max_w: «1e999", "1e999 is too large for a number"),
    Bad("endless number", "max_w: 2600", "max_w: «" + "9" * 5000, "a number of 5000 digits is larger than any quantity here"),
    Bad("empty value", "shared_directory: /srv/shared", "shared_directory: «~", "the value is empty; give it a value"),
    Bad("list as key", "    BMC: {app", "    «[BMC]: {app", "a list, mapping or alias cannot be a key"),
    Bad("NUL", ROW, 'row: "nor«\x00th"}\n  r02', "the invisible character U+0000 (control character) stands here"),
    Bad("zero width", ROW, "row: nor«\u200bth}\n  r02", "the invisible character U+200B (ZERO WIDTH SPACE) stands here"),
    Bad("escaped control", ROW, 'row: «"nor\\x07th"}\n  r02', "the text holds the control character U+0007"),
    Bad("open bracket", ROW, "row: north\n  r02«", "a mapping is not closed, or a comma is missing (begun at line 20, column 8)"),
    Bad("open quote", 'version: "28.36.1010"', 'version: "28.36.1010', "a quote is never closed"),
    Bad("colon in value", "cluster: lab\n", "cluster: lab«: x\n", "a `:` stands where no key can be"),
    Bad("reserved character", "cluster: lab\n", "cluster: «@lab\n", "`@` cannot begin a value; quote the value"),
]  # fmt: skip

FIELD_CASES = [
    Bad("unknown key", "cluster: lab\n", "cluster: lab\n«clutser: lab\n", "`clutser` is not a key of this file; did you mean `cluster`?"),
    Bad("unit in another key", "limit_w: 12000, feed: A", "limit_w: 12000, «limit_a: 60, feed: A", "`limit_a` is not a key of racks.r01; did you mean `limit_w`, in W?"),
    Bad("unit in the value", "limit_w: 12000, feed: A", "limit_w: «12 kW, feed: A", 'racks.r01.limit_w must be a number; it is "12 kW"; write `limit: 12 kW`, or the bare number in the unit that the key names'),
    Bad("missing key", "- {name: r01-n1, rack: r01, unit: 1,", "- «{name: r01-n1, rack: r01,", "`unit` is missing in nodes[0] (r01-n1); add `unit: ...` (unit: Lowest rack unit it occupies"),
    Bad("negative", "limit_w: 12000, feed: A", "limit_w: «-12000, feed: A", "racks.r01.limit_w is -12000 W; it must be more than 0 W"),
    Bad("huge", "count: 2", "count: «1000000", "skus.lab-2g.gpus.count is 1000000; it must be at most 128"),
    Bad("zero", "unit: 5, sku: lab-2g, serial: LAB00002", "unit: «0, sku: lab-2g, serial: LAB00002", "nodes[1].unit (r01-n2) is 0; it must be at least 1"),
    Bad("fraction", "units: 4\n", "units: «4.5\n", "skus.lab-2g.units must be a whole number; it is 4.5"),
    Bad("text for a list", '["28.39.1002"]', "«28.39.1002", "firmware.lab-2g.NIC1.approved must be a list (`- item` lines or [a, b]); it is \"28.39.1002\"; write [28.39.1002] if one item is meant"),
    Bad("list for a mapping", FEEDS, "«feeds: [A, B]", "feeds must be a mapping (`name: value` lines); it is a list of 2"),
    Bad("mapping for text", ROW, "«row: {a: b}}\n  r02", "racks.r01.row must be text; it is a mapping"),
    Bad("other version", "rackray: 1", "rackray: «2", "rackray is 2; write 1 (rackray: Version of this format)"),
    Bad("shell characters", "name: r01-n1", 'name: «"r01-n1;$(reboot)"', f'nodes[0].name (r01-n1;$(reboot)) is "r01-n1;$(reboot)"; write {NAME}'),
    Bad("line break in a name", "name: r01-n1", 'name: «"r01-n1\\n"', f'nodes[0].name (r01-n1\\n) is "r01-n1\\n"; write {NAME}'),
    Bad("long name", "name: r01-n1", "name: «" + "r" * 300, f"nodes[0].name ({'r' * 64}) is \"{'r' * 57}...\" (300 characters); write {NAME}"),
    Bad("look-alike", "name: r02-n1", "name: «r02-п1", "nodes[2].name (r02-п1) is \"r02-п1\", with 'п' (CYRILLIC SMALL LETTER PE); write"),
    Bad("range as a name", "name: r01-n1", 'name: «"r01-n[1-10000000]"', "r01-n[1-10000000] stands for 10,000,000 names; at most 200,000 are read; shorten its ranges"),
    Bad("upper-case MAC", MAC_1, 'mac: «"02:00:00:00:01:0A"', 'nodes[0].mac (r01-n1) is "02:00:00:00:01:0A"; write "02:00:00:00:01:0a", in lower case with colons'),
    Bad("shell in a path", "python: /opt/rackray/venv/bin/python", "python: «/opt/$(id)/python", 'runtime.python is "/opt/$(id)/python"; write an absolute path'),
    Bad("relative path", "shared_directory: /srv/shared", "shared_directory: «srv/shared", 'runtime.shared_directory is "srv/shared"; write an absolute path'),
    Bad("blank version", '["2.7.4"]', '[«""]', "firmware.lab-2g.BIOS.approved[0] is empty; it needs at least 1 character"),
    Bad("no version", '{approved: ["2.7.4"]}', "{«approved: []}", "firmware.lab-2g.BIOS.approved is empty; it needs at least 1 item"),
    Bad("secret key", "ssh_user: gpu", "ssh_user: gpu, «bmc_password: canary-7f3a", "`bmc_password` is not a key of access; secrets never stand in this file"),
    Bad("secret in a URL", '"https://127.3.0.1:8480"', '«"https://root:canary-7f3a@127.3.0.1"', 'services.image.url is "https://***@127.3.0.1"; write https://HOST'),
]  # fmt: skip

CHECK_CASES = [
    Bad("name twice", "name: r02-n1", "name: «r01-n1", "the name r01-n1 is also that of nodes[0] (r01-n1), line 49; rename one of the two"),
    Bad("name in other case", "name: r02-n1", "name: «R01-N1", "the name R01-N1 differs only in upper and lower case from that of nodes[0] (r01-n1), line 49"),
    Bad("rack in other case", "  r02: {", "  «R01: {units: 42, limit_w: 1, feed: A, leaf: x}\n  r02: {", "R01 differs only in upper and lower case from r01, line 20"),
    Bad("serial twice", "serial: LAB00003", "serial: «LAB00001", "the serial LAB00001 is also that of nodes[0] (r01-n1), line 49"),
    Bad("address twice", "address: 127.1.2.1", "address: «127.1.1.1", "nodes[2] (r02-n1) has the address 127.1.1.1, also that of nodes[0] (r01-n1), line 49"),
    Bad("BMC address twice", "bmc: 127.2.2.1", "bmc: «127.2.1.1", "the BMC of nodes[2] (r02-n1) has the address 127.2.1.1, also that of the BMC of nodes[0] (r01-n1), line 49"),
    Bad("MAC twice", 'mac: "02:00:00:00:02:01"', f"mac: «{MAC_1[5:]}", "the MAC 02:00:00:00:01:01 is also that of nodes[0] (r01-n1), line 49"),
    Bad("group MAC", MAC_1, 'mac: «"03:00:00:00:01:01"', "nodes[0] (r01-n1) has the MAC 03:00:00:00:01:01, a group address that no port has"),
    Bad("head on a node", "cell: {address: 127.1.0.250", "cell: {address: «127.1.1.2", "the cell head has the address 127.1.1.2, also that of nodes[1] (r01-n2), line 50"),
    Bad("two heads on one port", "127.1.0.251, port: 6390}", "127.1.0.250, port: «6380}", "the management head listens on 127.1.0.250 port 6380, as does the cell's, line 43"),
    Bad("BMC and node", "bmc: 127.2.1.1, address: 127.1.1.1", "bmc: «127.1.1.1, address: 127.1.1.1", "the BMC of nodes[0] (r01-n1) has the address 127.1.1.1, outside subnets.bmc 127.2.0.0/16", 1),
    Bad("outside", "address: 127.1.2.2", "address: «127.9.2.2", "nodes[3] (r02-n2) has the address 127.9.2.2, outside subnets.management 127.1.0.0/16; use one from 127.1.0.1 to 127.1.255.254"),
    Bad("network address", "address: 127.1.2.2", "address: «127.1.0.0", "nodes[3] (r02-n2) has the address 127.1.0.0, the network address of subnets.management 127.1.0.0/16"),
    Bad("broadcast address", "bmc: 127.2.2.2", "bmc: «127.2.255.255", "the BMC of nodes[3] (r02-n2) has the address 127.2.255.255, the broadcast address of subnets.bmc 127.2.0.0/16"),
    Bad("host bits", "bmc: 127.2.0.0/16", "bmc: «127.2.0.1/16", "subnets.bmc is 127.2.0.1/16, not the canonical form of a network; write 127.2.0.0/16"),
    Bad("no prefix", "management: 127.1.0.0/16", "management: «127.1.0.0", "subnets.management is 127.1.0.0, without a prefix length"),
    Bad("leading zero", "address: 127.1.2.2", "address: «127.01.2.2", "nodes[3] (r02-n2) has the address 127.01.2.2, with a leading zero, which some systems read as octal; write 127.1.2.2"),
    Bad("mapped IPv4", "address: 127.1.2.2", 'address: «"::ffff:127.1.2.2"', "nodes[3] (r02-n2) has the address ::ffff:127.1.2.2, an IPv4 address dressed as IPv6; write 127.1.2.2"),
    Bad("long IPv6", "address: 127.1.0.250", "address: «FD00::0001", "the cell head has the address FD00::0001, not in its canonical form; write fd00::1"),
    Bad("host name", "address: 127.1.2.2", "address: «node4.example", "nodes[3] (r02-n2) has the address node4.example, which is no IPv4 or IPv6 address"),
    Bad("address with port", "address: 127.1.2.2", 'address: «"127.1.2.2:22"', "nodes[3] (r02-n2) has the address 127.1.2.2:22, which has a port; write 127.1.2.2 alone"),
    Bad("wildcard address", "address: 127.1.0.250", "address: «0.0.0.0", "the cell head has the address 0.0.0.0, which is no single host's"),
    Bad("unknown rack", "rack: r02, unit: 1", "rack: «r20, unit: 1", "nodes[2] (r02-n1) stands in rack r20, which `racks` does not have; did you mean r02?"),
    Bad("unknown SKU", "sku: lab-2g, serial: LAB00001", "sku: «lab-8g, serial: LAB00001", "nodes[0] (r01-n1) is of SKU lab-8g, which `skus` does not have; did you mean lab-2g?"),
    Bad("unknown feed", "feed: B", "feed: «C", "rack r02 hangs on feed C, which `feeds` does not have; add C to `feeds`, or use one of: A, B"),
    Bad("baseline of no SKU", "  lab-2g:\n    BMC", "  «dgx:\n    BMC", "a firmware baseline is given for SKU dgx, which `skus` does not have"),
    Bad("fault in no node", "node: r01-n2", "node: «r09-n2", "the fault stale_firmware is planted in r09-n2, which `nodes` does not have"),
    Bad("fault in no GPU", "gpu: 1}", "gpu: «2}", "the fault gpu_row_remap_pending hits GPU 2 of r02-n2, which has 2 GPUs; GPUs count from 0 to 1"),
    Bad("units overlap", "unit: 5, sku: lab-2g, serial: LAB00002", "unit: «3, sku: lab-2g, serial: LAB00002", "nodes[1] (r01-n2) takes units 3-6 of rack r01, 2 of them shared with nodes[0] (r01-n1) in 1-4, line 49; unit 5 is the lowest with room for it"),
    Bad("above the rack", "unit: 5, sku: lab-2g, serial: LAB00004", "unit: «41, sku: lab-2g, serial: LAB00004", "nodes[3] (r02-n2) is 4 units high and would take units 41-44 of rack r02, 2 above its 42; unit 5 is the lowest with room for it"),
    Bad("rack over its power", "limit_w: 12000, feed: A", "limit_w: «5000, feed: A", "rack r01 draws 5.2 of 5.0 kW, 0.2 kW over; move 1 of its 2 nodes to another rack"),
    Bad("feed over its power by a watt", "A: {limit_w: 17000}", "A: {limit_w: «5199}", "feed A draws 5.2 of 5.199 kW, 0.001 kW over; move 1 of its 2 nodes"),
    Bad("idle above max", "idle_w: 900", "idle_w: «9000", "SKU lab-2g draws 9000 W idle, more than its largest draw of 2600 W"),
    Bad("version twice", '["2.7.4"]', '["2.7.4", «"2.7.4 "]', "version 2.7.4 of BIOS is approved twice"),
    Bad("climbing path", "/firmware/nic1-28.39.1002.bin", "«/firmware/../../etc/passwd", "image is /firmware/../../etc/passwd, a path with . or .. in it"),
    Bad("root login", "ssh_user: gpu", "ssh_user: «root", "ssh_user is root; name an unprivileged user with passwordless sudo"),
    Bad("canary", "canary: 1", "canary: «300", "the first wave has 300 nodes, but at most 256 are worked on at once; set canary to 256 or less"),
]  # fmt: skip
