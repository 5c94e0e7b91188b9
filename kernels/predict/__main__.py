from fastmask.kernels.predict.table import main

main()
