// Sends three requests in each version to the socket in argv[1], with the Rust client of the
// Identity Service. README.md says how to build this program.
use aziot_identity_client_async::Client;
use aziot_identity_common_http::ApiVersion;

#[tokio::main]
async fn main() {
    let uri = format!("unix://{}", std::env::args().nth(1).unwrap()).parse().unwrap();
    for version in [ApiVersion::V2020_09_01, ApiVersion::V2021_12_01, ApiVersion::V2022_08_01] {
        let client = Client::new(version, http_common::Connector::new(&uri).unwrap(), 0);
        println!("{version} identity {:?}", client.get_caller_identity().await);
        println!("{version} provisioning {:?}", client.get_provisioning_info().await);
        println!("{version} modules {:?}", client.get_identities().await.map(|_| ()));
    }
}
