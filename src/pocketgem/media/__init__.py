"""Files of strangers become pixels and samples, and these become what the towers take. numpy; never a tensor."""
