"""The accounts of a simulated BMC: factory account with a password that must change, roles, rules, lock-
out.
"""

import secrets
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from orchestrator.lab.machine_nouns import AccountRefused, NoSuchThing

ROLE_PRIVILEGES = MappingProxyType(
    {
        "Administrator": (
            "Login",
            "ConfigureManager",
            "ConfigureUsers",
            "ConfigureSelf",
            "ConfigureComponents",
        ),
        "Operator": ("Login", "ConfigureSelf", "ConfigureComponents"),
        "ReadOnly": ("Login", "ConfigureSelf"),
    }
)
"""The three standard roles and their privileges (DSP0266, "Redfish service operation-to-privilege
mapping").
"""

MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 72
MAX_ACCOUNTS = 15
LOCKOUT_THRESHOLD = 5
LOCKOUT_DURATION_S = 30.0


@dataclass(frozen=True, slots=True)
class Account:
    """One account; its password never appears in its repr."""

    id: str
    username: str
    password: str = field(repr=False)
    role: str
    must_change: bool = False
    enabled: bool = True
    failed_logins: int = 0
    locked_until_s: float = 0.0

    @property
    def privileges(self) -> tuple[str, ...]:
        """What its role allows."""
        return ROLE_PRIVILEGES[self.role]

    def is_locked(self, now_s: float) -> bool:
        """Whether too many wrong passwords were tried lately."""
        return now_s < self.locked_until_s


class Accounts:
    """The account table; the factory account is number 1 and must change its password first."""

    def __init__(self, factory_username: str, factory_password: str) -> None:
        factory = Account("1", factory_username, factory_password, "Administrator", must_change=True)
        self._by_id: dict[str, Account] = {factory.id: factory}
        self._last_id = 1

    def all(self) -> tuple[Account, ...]:
        """Every account, in order of creation."""
        return tuple(self._by_id.values())

    def get(self, account_id: str) -> Account:
        """The account of that id, or NoSuchThing."""
        if account_id not in self._by_id:
            raise NoSuchThing(f"no account has the id {account_id}")
        return self._by_id[account_id]

    def named(self, username: str) -> Account | None:
        """The account of that name, or None."""
        return next((account for account in self._by_id.values() if account.username == username), None)

    def authenticate(self, username: str, password: str, now_s: float) -> Account | None:
        """The account if name and password are right, it is enabled and not locked; wrong passwords are
        counted.
        """
        account = self.named(username)
        if account is None or not account.enabled or account.is_locked(now_s):
            return None
        if not secrets.compare_digest(account.password.encode(), password.encode()):
            self._count_failure(account, now_s)
            return None
        if account.failed_logins:
            account = self._put(replace(account, failed_logins=0))
        return account

    def create(self, username: str, password: str, role: str, *, must_change: bool = False, enabled: bool = True) -> Account:
        """A new account, or AccountRefused naming the rule."""
        if len(self._by_id) >= MAX_ACCOUNTS:
            raise AccountRefused(f"the table holds at most {MAX_ACCOUNTS} accounts; delete one first", "UserName")
        self._check_username(username)
        _check_password(password)
        _check_role(role)
        self._last_id += 1
        return self._put(Account(str(self._last_id), username, password, role, must_change, enabled))

    def rename(self, account_id: str, username: str) -> None:
        """Change the user name; AccountRefused if it is taken."""
        account = self.get(account_id)
        if username != account.username:
            self._check_username(username)
            self._put(replace(account, username=username))

    def set_password(self, account_id: str, password: str) -> None:
        """Change the password, which also satisfies a demand to change it; the old one again is refused
        then.
        """
        account = self.get(account_id)
        _check_password(password)
        if account.must_change and password == account.password:
            raise AccountRefused("the new password is the one that must be changed", "Password")
        self._put(replace(account, password=password, must_change=False, failed_logins=0))

    def set_role(self, account_id: str, role: str) -> None:
        """Change the role; the last administrator stays one."""
        account = self.get(account_id)
        _check_role(role)
        if role != "Administrator":
            self._keep_an_administrator(account, "RoleId")
        self._put(replace(account, role=role))

    def set_enabled(self, account_id: str, enabled: bool) -> None:
        """Enable or disable; the last administrator stays enabled."""
        account = self.get(account_id)
        if not enabled:
            self._keep_an_administrator(account, "Enabled")
        self._put(replace(account, enabled=enabled))

    def set_must_change(self, account_id: str, must_change: bool) -> None:
        """Demand (or waive) a new password at the next login."""
        self._put(replace(self.get(account_id), must_change=must_change))

    def unlock(self, account_id: str) -> None:
        """Forget the wrong passwords."""
        self._put(replace(self.get(account_id), locked_until_s=0.0, failed_logins=0))

    def delete(self, account_id: str) -> None:
        """Remove it; the last administrator stays."""
        account = self.get(account_id)
        self._keep_an_administrator(account, "UserName")
        del self._by_id[account_id]

    def _put(self, account: Account) -> Account:
        self._by_id[account.id] = account
        return account

    def _count_failure(self, account: Account, now_s: float) -> None:
        failures = account.failed_logins + 1
        if failures < LOCKOUT_THRESHOLD:
            self._put(replace(account, failed_logins=failures))
        else:
            self._put(replace(account, failed_logins=0, locked_until_s=now_s + LOCKOUT_DURATION_S))

    def _check_username(self, username: str) -> None:
        if not 1 <= len(username) <= 32 or not username.isprintable() or " " in username:
            raise AccountRefused("a user name has 1 to 32 printable characters without blanks", "UserName")
        if self.named(username):
            raise AccountRefused(f"an account is called {username} already", "UserName")

    def _keep_an_administrator(self, account: Account, property_name: str) -> None:
        others = (a for a in self._by_id.values() if a.id != account.id and a.enabled and a.role == "Administrator")
        if account.role == "Administrator" and next(others, None) is None:
            raise AccountRefused(f"{account.username} is the last administrator", property_name)


def _check_password(password: str) -> None:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise AccountRefused(
            f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters, not {len(password)}",
            "Password",
        )


def _check_role(role: str) -> None:
    if role not in ROLE_PRIVILEGES:
        raise AccountRefused(f"no role is called {role}; there are {', '.join(ROLE_PRIVILEGES)}", "RoleId")
