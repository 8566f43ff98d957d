from selfsup.launch import main

main()
