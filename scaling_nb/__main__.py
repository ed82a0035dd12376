from scaling_nb.cli import main
raise SystemExit(main())
