"""`python -m roboreel` is the command `roboreel`."""

from roboreel.cli import main

if __name__ == "__main__":
    main()
