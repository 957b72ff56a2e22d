"""Puts what this package does at the seams of the SDK, once a process."""

from agents import ApplyPatchTool, CustomTool, LocalShellTool, ShellTool

from nexum_agents import function_tools, guardrails, memory, other_tools, runs, seams, turns


def install() -> None:
    """Outside of a durable session each seam passes through."""
    other_tools.make_replaceable(LocalShellTool, "executor")
    other_tools.make_replaceable(ShellTool, "executor")
    other_tools.make_replaceable(CustomTool, "on_invoke_tool")
    other_tools.make_replaceable(ApplyPatchTool, "editor")
    get_plain = seams.plain("memory_get")
    seams.instrument(
        run=runs.run,
        start_streaming=runs.start_streaming,
        get_model=turns.model_of,
        invoke_tool=function_tools.invoke_tool,
        list_mcp_tools=function_tools.list_mcp_tools,
        check_input=guardrails.check_input,
        check_output=guardrails.check_output,
        check_tool_input=guardrails.check_tool,
        check_tool_output=guardrails.check_tool,
        memory_get=memory.get,
        memory_add=lambda plain: memory.add(plain, get_plain),
        memory_compact=memory.compact,
        memory_pop=lambda plain: memory.pop(plain, get_plain),
        local_shell=other_tools.executed("local_shell_tool", "executor", other_tools.shell_content, tells_errors=False),
        shell=other_tools.executed("shell_tool", "executor", other_tools.shell_content),
        custom_tool=other_tools.executed("custom_tool", "on_invoke_tool", other_tools.custom_content),
        apply_patch=other_tools.apply_patch,
        computer=other_tools.computer,
    )
