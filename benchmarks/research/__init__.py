"""What results/ keeps of research jobs: claims of their papers, each with our estimate, a test and a verdict."""
