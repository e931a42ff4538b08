from cl_toolkit.cli.app import main

main()
