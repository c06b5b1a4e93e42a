"""Messages of DMTF's Base and Update registries (DSP8011) that this BMC uses, and the refusal that carries
them.

Message texts are those of the registry: clients and DMTF's validators match on the ids and show the texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE = "Base.1.18"
UPDATE = "Update.1.0"

Json = dict[str, Any]
"""A JSON object on its way out. Any: Redfish bodies nest without a fixed depth."""


@dataclass(frozen=True, slots=True)
class _Text:
    severity: str
    text: str
    resolution: str = "None."
    registry: str = BASE


MESSAGES: Mapping[str, _Text] = {
    "Success": _Text("OK", "The request completed successfully."),
    "MalformedJSON": _Text(
        "Critical",
        "The request body submitted was malformed JSON and could not be parsed by the receiving service.",
        "Ensure that the request body is valid JSON and resubmit the request.",
    ),
    "UnrecognizedRequestBody": _Text(
        "Warning",
        "The service detected a malformed request body that it was unable to interpret.",
        "Correct the request body and resubmit the request if it failed.",
    ),
    "EmptyJSON": _Text(
        "Warning",
        "The request body submitted contained an empty JSON object and the service is unable to process it.",
        "Add properties in the JSON object and resubmit the request.",
    ),
    "NoOperation": _Text(
        "Warning",
        "The request body submitted contain no data to act upon and no changes to the resource took place.",
        "Add properties in the JSON object and resubmit the request.",
    ),
    "PropertyUnknown": _Text(
        "Warning",
        "The property '%1' is not in the list of valid properties for the resource.",
        "Remove the unknown property from the request body and resubmit the request.",
    ),
    "PropertyNotWritable": _Text(
        "Warning",
        "The property '%1' is a read-only property and cannot be assigned a value.",
        "Remove the property from the request body and resubmit the request.",
    ),
    "PropertyMissing": _Text(
        "Warning",
        "The property '%1' is a required property and must be included in the request.",
        "Ensure that the property is in the request body and has a valid value.",
    ),
    "PropertyValueTypeError": _Text(
        "Warning", "The value '%1' for the property '%2' is not a type that the property can accept."
    ),
    "PropertyValueNotInList": _Text("Warning", "The value '%1' for the property '%2' is not in the list of acceptable values."),
    "PropertyValueFormatError": _Text(
        "Warning", "The value '%1' for the property '%2' is not a format that the property can accept."
    ),
    "ActionNotSupported": _Text("Critical", "The action '%1' is not supported by the resource."),
    "ActionParameterMissing": _Text("Critical", "The action '%1' requires the parameter '%2' to be present in the request body."),
    "ActionParameterUnknown": _Text("Warning", "The action '%1' was submitted with the invalid parameter '%2'."),
    "ActionParameterValueTypeError": _Text(
        "Warning",
        "The value '%1' for the parameter '%2' in the action '%3' is not a type that the parameter can accept.",
    ),
    "ActionParameterValueNotInList": _Text(
        "Warning",
        "The value '%1' for the parameter '%2' in the action '%3' is not in the list of acceptable values.",
    ),
    "ActionParameterValueConflict": _Text(
        "Warning",
        "The parameter '%1' with the requested value of '%2' does not meet the constraints of the implementation.",
    ),
    "ResourceInUse": _Text(
        "Warning",
        "The change to the requested resource failed because the resource is in use or in transition.",
        "Remove the condition and resubmit the request if the operation failed.",
    ),
    "ResourceMissingAtURI": _Text(
        "Critical",
        "The resource at the URI '%1' was not found.",
        "Place a valid resource at the URI or correct the URI and resubmit the request.",
    ),
    "NoValidSession": _Text(
        "Critical",
        "There is no valid session established with the implementation.",
        "Establish a session before attempting any operations.",
    ),
    "InsufficientPrivilege": _Text(
        "Critical",
        "There are insufficient privileges for the account or credentials associated with the current"
        " session to perform the requested operation.",
        "Either abandon the operation or change the associated access rights and resubmit the request.",
    ),
    "PasswordChangeRequired": _Text(
        "Critical",
        "The password provided for this account must be changed before access is granted.  PATCH the"
        " Password property for this account located at the target URI '%1' to complete this process.",
        "Change the password for this account using a PATCH to the Password property at the URI provided.",
    ),
    "SessionLimitExceeded": _Text(
        "Critical",
        "The session establishment failed due to the number of simultaneous sessions exceeding the limit of the implementation.",
        "Reduce the number of other sessions before trying to establish the session.",
    ),
    "PreconditionFailed": _Text(
        "Critical",
        "The ETag supplied did not match the ETag required to change this resource.",
        "Try the operation again using the appropriate ETag.",
    ),
    "OperationNotAllowed": _Text(
        "Critical",
        "The HTTP method is not allowed on this resource.",
        "None.",
    ),
    "QueryNotSupported": _Text(
        "Warning",
        "Querying is not supported by the implementation.",
        "Remove the query parameters and resubmit the request if the operation failed.",
    ),
    "ServiceTemporarilyUnavailable": _Text(
        "Critical",
        "The service is temporarily unavailable.  Retry in %1 seconds.",
        "Wait for the indicated retry duration and retry the operation.",
    ),
    "InternalError": _Text(
        "Critical",
        "The request failed due to an internal service error.  The service is still operational.",
        "Resubmit the request.  If the problem persists, consider resetting the service.",
    ),
    "GeneralError": _Text(
        "Critical",
        "A general error has occurred.  See Resolution for information on how to resolve the error, or"
        " @Message.ExtendedInfo if Resolution is not provided.",
    ),
    "TargetDetermined": _Text("OK", "The target device '%1' will be updated with image '%2'.", registry=UPDATE),
    "UpdateSuccessful": _Text("OK", "Device '%1' successfully updated with image '%2'.", registry=UPDATE),
    "AwaitToActivate": _Text(
        "OK",
        "Awaiting for an action to proceed with activating image '%1' on '%2'.",
        "Perform the requested action to advance the update operation.",
        registry=UPDATE,
    ),
    "JCP001": _Text("OK", "Task successfully scheduled.", registry="IDRAC.2.8"),
    "ApplyFailed": _Text("Critical", "Installation of image '%1' to '%2' failed.", registry=UPDATE),
}


def message(key: str, *args: str, related: tuple[str, ...] = (), resolution: str = "") -> Json:
    """One entry of `@Message.ExtendedInfo`.

    related: JSON pointers of the properties at fault, such as `#/Boot/BootSourceOverrideTarget`.
    resolution: what to do, where the registry's own words say too little.
    """
    known = MESSAGES[key]
    text = known.text
    for number, arg in enumerate(args, start=1):
        text = text.replace(f"%{number}", arg)
    body: Json = {
        "@odata.type": "#Message.v1_1_2.Message",
        "MessageId": f"{known.registry}.{key}",
        "Message": text,
        "MessageArgs": list(args),
        "MessageSeverity": known.severity,
        "Resolution": resolution or known.resolution,
    }
    if related:
        body["RelatedProperties"] = list(related)
    return body


@dataclass(eq=False)
class Refused(Exception):
    """A request that is answered with an error: the status, one message or more, and headers."""

    status: int
    messages: list[Json]
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> Json:
        """The extended error (DSP0266, "Error responses")."""
        first = self.messages[0]
        return {
            "error": {
                "code": first["MessageId"],
                "message": first["Message"],
                "@Message.ExtendedInfo": self.messages,
            }
        }


def refused(status: int, key: str, *args: str, resolution: str = "", **headers: str) -> Refused:
    """A refusal with one message; headers are given with underscores for dashes."""
    return Refused(
        status,
        [message(key, *args, resolution=resolution)],
        {name.replace("_", "-"): value for name, value in headers.items()},
    )
