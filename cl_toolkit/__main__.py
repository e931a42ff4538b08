from cl_toolkit.cli import main

main()
