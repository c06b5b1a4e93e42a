"""Groups of commands: their help shows every command's whole first sentence, and a mistyped command names the near ones."""

import difflib

import click


class CommandGroup(click.Group):
    """A group of commands that was written for people who mistype."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        word = click.utils.make_str(args[0])
        if not word.startswith("-") and self.get_command(ctx, word) is None and not ctx.resilient_parsing:
            close = difflib.get_close_matches(word, self.list_commands(ctx), n=2, cutoff=0.5)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command '{word}'.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.line_of(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def line_of(self, ctx: click.Context, name: str) -> str:
        """What the help says of one command: its first sentence, as long as it is. click cuts it at 45 letters."""
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=1000) if command is not None else ""
