from nexum_runtime.cli import main

main()
