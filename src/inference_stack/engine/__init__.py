"""The worker process: loop, runner, arena, slots. Executes plans; decides nothing that a scheduler decides."""
