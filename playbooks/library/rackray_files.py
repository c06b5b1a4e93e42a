#!/usr/bin/python3
"""Ansible module: many small folders and files at once.

One task per file costs two or three SSH connections per node and file; on thousands of nodes that is the time a bring-up
takes. This makes them all in one. Safe to repeat, knows check mode and diff, and writes every file whole or not at all.
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: rackray_files
short_description: Folders and files, all in one connection
options:
  folders:
    description: Each with path, and optionally owner, group and mode. Parents come before children.
    type: list
    elements: dict
  files:
    description: Each with path and content, and optionally owner, group and mode. Their folders must exist.
    type: list
    elements: dict
"""
RETURN = r"""
changed_paths:
  description: What was made or changed, or would have been in check mode.
  type: list
  returned: always
"""

ATTRIBUTES = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "folders": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "mode": {"type": "str", "default": "0755"}, **ATTRIBUTES},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    **ATTRIBUTES,
                },
            },
        },
        supports_check_mode=True,
    )
    changed, diffs = [], []
    for folder in module.params["folders"]:
        if make_folder(module, folder):
            changed.append(folder["path"])
    for file in module.params["files"]:
        before = read(module, file["path"])
        if write(module, file, before):
            changed.append(file["path"])
            diffs.append(
                {
                    **dict.fromkeys(("before_header", "after_header"), file["path"]),
                    "before": before or "",
                    "after": file["content"],
                }
            )
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diffs)


def make_folder(module, folder):
    """Whether the folder had to be made or changed."""
    path = folder["path"]
    missing = not os.path.isdir(path)
    if missing:
        if os.path.lexists(path):
            module.fail_json(msg=f"{path} is there and is no folder")
        if module.check_mode:
            return True
        try:
            os.makedirs(path)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be made: {error}")
    return module.set_fs_attributes_if_different(attributes(module, folder), missing)


def write(module, file, before):
    """Whether the file had to be written or changed."""
    path = file["path"]
    differs = before != file["content"]
    if differs and module.check_mode:
        return True
    if differs:
        try:
            handle, draft = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".rackray-")
            with os.fdopen(handle, "w") as stream:
                stream.write(file["content"])
            # Owner and mode before the name: nobody ever sees the file under its name with others.
            module.set_fs_attributes_if_different(attributes(module, file, draft), False)
            os.replace(draft, path)
        except OSError as error:
            module.fail_json(msg=f"{path} cannot be written: {error}")
    return module.set_fs_attributes_if_different(attributes(module, file), differs)


def read(module, path):
    """The file's text, or None if there is no such file."""
    try:
        with open(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{path} cannot be read: {error}")


def attributes(module, wanted, path=None):
    """What Ansible's own helper wants to know about owner and mode."""
    given = {"path": path or wanted["path"], "owner": wanted["owner"], "group": wanted["group"], "mode": wanted["mode"]}
    return module.load_file_common_arguments(given)


if __name__ == "__main__":
    main()
